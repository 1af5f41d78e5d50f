// Package bench measures Tidemark against something plain in the same run, because an absolute figure
// says more about the machine than about the program. Runs of a value and its reference alternate, so
// that a machine which slows down slows both; what is reported are medians, and the median of the runs'
// ratios. `make bench` prints the table and writes bench.json; with -short each benchmark runs once and
// small, so that none rots.
package bench
