from sslref.cli import main

main()
