package stack

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/tidemark/tidemark/shared/freeport"
)

// node is a broker's place in a cluster.
type node struct {
	id         int
	clusterID  string
	controller int    // port
	voters     string // all of them
}

// Cluster is several Apache Kafkas that are one: each is broker and controller. Its topics have a replica on each, and a
// write is acknowledged by all but one of them at the least, unless the settings say otherwise.
type Cluster struct{ nodes []*Kafka }

// StartCluster starts n brokers, three at the least where one may be missing. Options are those of each; the heap is
// 256 MB unless given. The context bounds the start only.
func StartCluster(ctx context.Context, n int, opts KafkaOptions) (_ *Cluster, err error) {
	c := &Cluster{}
	id, controllers, voters := newClusterID(), make([]int, n), make([]string, n)
	for i := range n {
		if controllers[i], err = freeport.Find(ctx); err != nil {
			return nil, err
		}
		voters[i] = strconv.Itoa(i+1) + "@" + freeport.Address(controllers[i])
	}
	copies, acknowledge := strconv.Itoa(n), strconv.Itoa(max(n-1, 1))
	settings := map[string]string{
		"default.replication.factor": copies, "min.insync.replicas": acknowledge,
		"offsets.topic.replication.factor":         copies,
		"transaction.state.log.replication.factor": copies, "transaction.state.log.min.isr": acknowledge,
		"share.coordinator.state.topic.replication.factor": copies, "share.coordinator.state.topic.min.isr": acknowledge,
	}
	for name, value := range opts.Settings {
		settings[name] = value
	}
	opts.Settings = settings
	if opts.HeapMB == 0 {
		opts.HeapMB = 256
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close(ctx))
		}
	}()
	for i := range n {
		opts.node = &node{id: i + 1, clusterID: id, controller: controllers[i], voters: strings.Join(voters, ",")}
		k, err := newKafka(ctx, opts)
		if err != nil {
			return nil, fmt.Errorf("broker %d of %d: %w", i+1, n, err)
		}
		c.nodes = append(c.nodes, k)
	}
	// None of them listens before most of them are there.
	var starting sync.WaitGroup
	errs := make([]error, n)
	for i, k := range c.nodes {
		starting.Go(func() { errs[i] = k.Start(ctx) })
	}
	starting.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return c, nil
}

// Nodes are the brokers, each with a life of its own.
func (c *Cluster) Nodes() []*Kafka { return c.nodes }

// Brokers returns the addresses of all.
func (c *Cluster) Brokers() []string {
	var all []string
	for _, k := range c.nodes {
		all = append(all, k.Brokers()...)
	}
	return all
}

// Close kills them all and removes temporary data.
func (c *Cluster) Close(ctx context.Context) error {
	var errs []error
	for _, k := range c.nodes {
		errs = append(errs, k.Close(ctx))
	}
	return errors.Join(errs...)
}
