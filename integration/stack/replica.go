package stack

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strings"

	"github.com/tidemark/tidemark/shared/freeport"
)

// Replica is a standby that streams from a primary through Link, asynchronously.
type Replica struct {
	*Postgres
	Link *Proxy // what is cut here is lost when the primary is
}

// StartReplica makes a standby of p: a copy of its files, taken while it is stopped for a moment, that goes on from
// what p writes afterwards.
func (p *Postgres) StartReplica(ctx context.Context) (_ *Replica, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("start a replica: %w", err)
		}
	}()
	dir, err := os.MkdirTemp("", "tidemark-replica-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if err := p.Server.Close(); err != nil {
		return nil, err
	}
	if output, err := exec.CommandContext(ctx, "cp", "-a", p.dir+"/.", dir).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("copy the cluster: %w: %s", err, output)
	}
	if err := writeClusterFile(dir, "standby.signal", nil); err != nil {
		return nil, err
	}
	if p.Server, err = startServer(ctx, p.dir, p.Port(), p.waits, nil); err != nil {
		return nil, err
	}
	link, err := StartProxy(ctx, p.Address())
	if err != nil {
		return nil, err
	}
	from, err := primaryConnection(p.URL(), link.Address())
	if err != nil {
		return nil, errors.Join(err, link.Close())
	}
	port, err := freeport.Find(ctx)
	if err != nil {
		return nil, errors.Join(err, link.Close())
	}
	waits := newLockWaits()
	server, err := startServer(ctx, dir, port, waits, map[string]string{"primary_conninfo": from})
	if err != nil {
		return nil, errors.Join(err, link.Close())
	}
	return &Replica{&Postgres{Server: server, dir: dir, waits: waits}, link}, nil
}

// primaryConnection is how a standby reaches its primary, in libpq's words.
func primaryConnection(primary, address string) (string, error) {
	u, err := url.Parse(primary)
	if err != nil {
		return "", err
	}
	password, _ := u.User.Password()
	host, port, _ := strings.Cut(address, ":")
	return fmt.Sprintf("host=%s port=%s user=%s password=%s sslmode=disable", host, port, u.User.Username(), password), nil
}

// CaughtUp reports whether the replica has replayed all that its primary has written.
func (r *Replica) CaughtUp(ctx context.Context, primary *Postgres) (bool, error) {
	written, err := value(ctx, primary.URL(), "SELECT pg_current_wal_lsn()::text")
	if err != nil {
		return false, err
	}
	there, err := value(ctx, r.URL(), "SELECT (pg_last_wal_replay_lsn() >= '"+written+"'::pg_lsn)::text")
	return there == "true", err
}

// Promote makes it a primary, and returns once it takes writes.
func (r *Replica) Promote(ctx context.Context) error {
	done, err := value(ctx, r.URL(), "SELECT pg_promote(true, 60)::text")
	if err == nil && done != "true" {
		err = errors.New("it is a standby still, after a minute")
	}
	if err != nil {
		return fmt.Errorf("promote the replica: %w", err)
	}
	return nil
}

// Close stops it and removes its data.
func (r *Replica) Close() error { return errors.Join(r.Link.Close(), r.Postgres.Close()) }
