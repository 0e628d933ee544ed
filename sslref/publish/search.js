// How the search ranks what it finds: a chapter before the pages of the reference, which name the same things.
var Scorer = {
  score: ([, , , , score, file]) => score + (file?.endsWith(".ipynb") ? 6 : 0),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
