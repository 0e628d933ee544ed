"""Courses from chapters: student notebooks, grading, slides, quizzes, and what a teacher has to know."""
