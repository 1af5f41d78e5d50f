package app

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/tidemark/tidemark/tidemark/internal/datadir"
)

// ownFile keeps where the servers of the last run were, so that their names are recognised once they have ended.
const ownFile = "servers.json"

// ownServers are those that runs on a data directory started themselves.
type ownServers struct {
	KafkaBrokers string `json:"kafka_brokers"`
	DBURL        string `json:"db_url"`
}

// keepOwnServers notes where the servers are that this run started.
func (r *run) keepOwnServers() error {
	var own ownServers
	if err := datadir.ReadFact(r.DataDir, ownFile, &own); err != nil {
		return err
	}
	if r.ownKafka() {
		own.KafkaBrokers = r.running.KafkaBrokers
	}
	if r.ownPostgres() {
		own.DBURL = r.running.DBURL
	}
	return datadir.WriteFact(r.DataDir, ownFile, own)
}

// refuseLeftovers refuses an environment that names the servers of an earlier run on this directory, which ended with it: it
// is that of a shell which evaluated `tidemark env`, and would have this run wait for them for ever. The caller holds the
// directory, so they are not another run's; where something listens all the same, it is meant.
func (r *run) refuseLeftovers(ctx context.Context) error {
	var own ownServers
	if err := datadir.ReadFact(r.DataDir, ownFile, &own); err != nil {
		return err
	}
	var dead []string
	if brokers := r.Environ["KAFKA_BROKERS"]; brokers != "" && brokers == own.KafkaBrokers && !listens(ctx, brokers) {
		dead = append(dead, "KAFKA_BROKERS")
	}
	if u, err := url.Parse(own.DBURL); err == nil && own.DBURL != "" && r.Environ["DB_URL"] == own.DBURL && !listens(ctx, u.Host) {
		dead = append(dead, "DB_URL")
	}
	if len(dead) == 0 {
		return nil
	}
	unset := dead
	if r.Environ["KAFKA_CLAIMED_PARTITIONS"] != "" {
		unset = append(unset, "KAFKA_CLAIMED_PARTITIONS")
	}
	return fmt.Errorf(`%s: set to what an earlier tidemark up on %s started, and nothing listens there since that ended (eval "$(tidemark env)" sets it): unset %s, and start again`,
		strings.Join(dead, " and "), r.DataDir, strings.Join(unset, " "))
}

func listens(ctx context.Context, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second) // it is on this host
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}
