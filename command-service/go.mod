module github.com/tidemark/tidemark/command-service

go 1.26

replace github.com/tidemark/tidemark/shared => ../shared
