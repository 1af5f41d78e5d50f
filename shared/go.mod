module github.com/tidemark/tidemark/shared

go 1.26
