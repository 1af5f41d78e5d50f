// Package broker runs a Kafka broker inside the process, for `tidemark up` and for tests that should be fast.
//
// It is franz-go's kfake with what Tidemark needs on top: the log, the port and the cluster id stay over a restart; every
// record bears the broker's clock as its time, whatever its producer and its topic's settings say; a directory has one
// broker at a time; and bytes that are no Kafka request end their connection instead of the process.
//
// Records live on disk and are read from there; in memory the broker keeps 72 bytes for each record batch, the group
// offsets and the producers' states. A start needs more: it reads the log through, after a clean stop one segment (100
// MB) of each partition at a time, after a crash all of it at once, so that the log's size should stay well under the
// machine's memory. Whoever outgrows that, or needs replicas, uses a real Kafka.
//
// Durability: each batch is synced before it is acknowledged (unless Options.NoSync), so it outlives a kill and, as far
// as the file system keeps new directory entries, a power cut. The numbers by which a producer's repeats are recognised
// are written at a clean stop only: a batch that was written but not acknowledged when the process was killed, and that
// its producer sends again, is there twice. The projection books the second as a duplicate.
package broker

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/tidemark/tidemark/shared/lockfile"
	"github.com/tidemark/tidemark/tidemark/internal/datadir"
)

// Options say where the broker keeps its log and where it listens.
type Options struct {
	// DataDir holds everything the broker knows; it is made where it is missing. Required.
	DataDir string
	// Port on 127.0.0.1; that of the last start unless given, and any free one the first time.
	Port int
	// Log gets the broker's warnings; they are discarded unless given.
	Log *slog.Logger
	// NoSync leaves the syncing of writes to the operating system; every write is synced unless given. It is faster, and a
	// power cut may lose acknowledged records. A kill of the process still loses nothing.
	NoSync bool
}

// Broker is a running broker; its owner closes it.
type Broker struct {
	cluster  *kfake.Cluster
	identity identity
	lock     *lockfile.Lock
	close    func() error
}

// identity is what clients recognise the broker by after a restart.
type identity struct {
	ClusterID string `json:"cluster_id"`
	Port      int    `json:"port"`
}

const identityFile = "broker.json"

// Start runs a broker until Close. The context bounds only the start.
func Start(ctx context.Context, opts Options) (_ *Broker, err error) {
	if opts.DataDir == "" {
		return nil, errors.New("embedded broker: DataDir is not set")
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	log := opts.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}

	lock, err := datadir.Acquire(opts.DataDir)
	if err != nil {
		return nil, fmt.Errorf("embedded broker: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Release())
		}
	}()

	who := identity{ClusterID: newClusterID()}
	if err := datadir.ReadFact(opts.DataDir, identityFile, &who); err != nil {
		return nil, fmt.Errorf("embedded broker: %w", err)
	}
	if opts.Port != 0 {
		who.Port = opts.Port
	}

	// Before kfake writes anything: the id it keeps must be this one.
	if err := datadir.WriteFact(opts.DataDir, identityFile, who); err != nil {
		return nil, fmt.Errorf("embedded broker: keep identity: %w", err)
	}

	stamps, err := newStamper(time.Now)
	if err != nil {
		return nil, fmt.Errorf("embedded broker: %w", err)
	}
	options := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.Ports(who.Port),
		kfake.ClusterID(who.ClusterID),
		kfake.MaxVersions(spoken()),
		kfake.DataDir(opts.DataDir),
		kfake.WithLogger(logger{log}),
		kfake.ListenFn(func(network, address string) (net.Listener, error) {
			l, err := new(net.ListenConfig).Listen(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return guardedListener{l}, nil
		}),
		kfake.BrokerConfigs(map[string]string{"default.replication.factor": "1"}),
	}
	if !opts.NoSync {
		options = append(options, kfake.SyncWrites())
	}
	cluster, err := kfake.NewCluster(options...)
	if err != nil {
		return nil, fmt.Errorf("embedded broker: %w", err)
	}
	keepStamping(cluster, stamps)

	b := &Broker{cluster: cluster, lock: lock}
	b.close = sync.OnceValue(func() error {
		cluster.Close()
		return lock.Release()
	})
	if who.Port, err = listeningPort(cluster); err == nil {
		err = datadir.WriteFact(opts.DataDir, identityFile, who)
	}
	if err != nil {
		cluster.Close()
		return nil, fmt.Errorf("embedded broker: keep identity: %w", err)
	}
	b.identity = who
	return b, nil
}

// spoken is what the broker says it understands: what Kafka 4.1 does, but for the one request that kfake answers in a
// way (null where a list must be) on which Java's admin client, and with it Kafka's own tools, give up. Without it they
// ask the older way.
func spoken() *kversion.Versions {
	versions := kversion.V4_1_0()
	versions.SetMaxKeyVersion(int16(kmsg.DescribeTopicPartitions), -1)
	return versions
}

// keepStamping has every produce request pass through the stamper.
func keepStamping(cluster *kfake.Cluster, stamps *stamper) {
	cluster.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		// kfake keeps the last request of every connection, closed ones too, for as long as a control function
		// stays; one that makes room for a fresh copy of itself leaves nothing behind.
		keepStamping(cluster, stamps)
		cluster.DropControl()
		resp, err := stamps.request(req.(*kmsg.ProduceRequest))
		if err != nil {
			return nil, err, true
		}
		if resp != nil {
			return resp, nil, true
		}
		return nil, nil, false
	})
}

// Addresses returns the host:port pairs for KAFKA_BROKERS.
func (b *Broker) Addresses() []string {
	return []string{net.JoinHostPort("127.0.0.1", strconv.Itoa(b.identity.Port))}
}

// ClusterID returns the id that clients see, the same after every restart on the same directory.
func (b *Broker) ClusterID() string { return b.identity.ClusterID }

// Close stops the broker, writes down what only a clean stop writes and gives the directory back. A second call does
// nothing and returns what the first one did.
func (b *Broker) Close() error { return b.close() }

func listeningPort(cluster *kfake.Cluster) (int, error) {
	_, port, err := net.SplitHostPort(cluster.ListenAddrs()[0])
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(port)
}

// newClusterID makes one the way Kafka does: 16 random bytes in URL-safe base64 without padding.
func newClusterID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails since Go 1.24
	return base64.RawURLEncoding.EncodeToString(id[:])
}

// logger passes kfake's warnings and errors on, and drops the rest.
type logger struct{ to *slog.Logger }

func (l logger) Logf(level kfake.LogLevel, format string, args ...any) {
	switch level {
	case kfake.LogLevelError:
		l.to.Error("embedded broker", "said", fmt.Sprintf(format, args...))
	case kfake.LogLevelWarn:
		l.to.Warn("embedded broker", "said", fmt.Sprintf(format, args...))
	}
}
