module github.com/tidemark/tidemark/command-service

go 1.26

require github.com/tidemark/tidemark/shared v0.0.0

replace github.com/tidemark/tidemark/shared => ../shared
