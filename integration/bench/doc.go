// Package bench measures Tidemark against something plain in the same run, because an absolute figure
// says more about the machine than about the program. Each benchmark prints one JSON object a line:
//
//	{"name","unit","value","reference","ratio","runs":[{"value","reference"}, …]}
//
// where value and reference are medians and ratio is the median of the runs' ratios. The runs alternate,
// so that a machine which slows down slows both. Kafka is a real one, named by TEST_KAFKA_BROKERS.
package bench
