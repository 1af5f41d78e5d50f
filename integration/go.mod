module github.com/tidemark/tidemark/integration

go 1.26.0

require github.com/stretchr/testify v1.12.1

require go.yaml.in/yaml/v3 v3.0.5 // indirect

replace (
	github.com/tidemark/tidemark/command-service => ../command-service
	github.com/tidemark/tidemark/consumer-service => ../consumer-service
	github.com/tidemark/tidemark/query-service => ../query-service
	github.com/tidemark/tidemark/shared => ../shared
	github.com/tidemark/tidemark/tidemark => ../tidemark
)
