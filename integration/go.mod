module github.com/tidemark/tidemark/integration

go 1.26

require (
	github.com/tidemark/tidemark/shared v0.0.0
	github.com/tidemark/tidemark/command-service v0.0.0
	github.com/tidemark/tidemark/consumer-service v0.0.0
	github.com/tidemark/tidemark/query-service v0.0.0
	github.com/tidemark/tidemark/tidemark v0.0.0
)

replace (
	github.com/tidemark/tidemark/shared => ../shared
	github.com/tidemark/tidemark/command-service => ../command-service
	github.com/tidemark/tidemark/consumer-service => ../consumer-service
	github.com/tidemark/tidemark/query-service => ../query-service
	github.com/tidemark/tidemark/tidemark => ../tidemark
)
