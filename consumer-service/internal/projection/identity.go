package projection

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tidemark/tidemark/shared/kafka"
)

// Identity tells which topic stands under a name in the log now. A topic that was deleted and made again has another id.
type Identity interface {
	// TopicID returns the id that the cluster gave the topic when it was made; empty where there is no such topic.
	TopicID(ctx context.Context, topic string) (string, error)
}

// NewLog is what happens to a projection whose topic was made anew.
//
// Its tables were computed from the former topic, and offsets of the new one mean other records. So nothing of the new topic
// is written to them, and a start-over in place will not do: it would call records of the new topic duplicates of old rows.
// Unless the operator accepts the new topic, the projection refuses it. Where he does, a candidate is filled from it and
// takes the place of the serving generation, which is then held. Until then the serving projector waits and readers are told.
type NewLog interface {
	// Accepted says whether the operator accepts the topic of this id. Where he does and something is still to be waited
	// for, the error says what it is.
	Accepted(ctx context.Context, topic, id string) (bool, error)
	// Fill makes sure that a generation is being filled from the topic of this id, and returns its number.
	Fill(ctx context.Context, id, cluster string) (generation int, err error)
}

// identityEvery is the time between two looks at the topic's id. missingLooks of them in a row that find no topic under the
// name refuse: one may be an answer of a broker that has just started.
const (
	identityEvery = 3 * time.Second
	missingLooks  = 3
	// newLogPoll is the time between two looks of a projector that waits for the generation that is filled from a new topic.
	newLogPoll = time.Second
)

// identityLooks remembers what the last looks at the topic found.
type identityLooks struct {
	at      time.Time
	missing int // in a row
}

var errNoTopic = errors.New("is not there: no topic has this name")

// newLogAccepted says that the serving generation waits for one that is filled from the accepted topic.
type newLogAccepted struct {
	reason  string
	id      string // of the topic, where it may be filled from; empty while something else is waited for
	cluster string
}

func (e *newLogAccepted) Error() string { return e.reason }

// ownTopic reads the generation, and refuses a cluster or a topic that it was not computed from. It returns the topic's id.
func (p *Projector) ownTopic(ctx context.Context, cluster string) (generation, string, error) {
	g, err := p.store.generation(ctx)
	if err != nil {
		return g, "", err
	}
	if p.Role.candidate() != nil {
		if err := p.Role.check(g, p.Group); err != nil {
			return g, "", err
		}
	}
	id, err := p.sameTopic(ctx, g)
	var accepted *newLogAccepted
	if errors.As(err, &accepted) { // a topic that is accepted may stand in another cluster
		accepted.cluster = cluster
		return g, "", err
	}
	if other := judgeCluster(g, cluster); other != nil {
		return g, "", other
	}
	return g, id, err
}

// sameTopic compares the id of the topic that is there with the generation's, and returns it. Another one is a *Refusal, or
// *newLogAccepted under the role Serving. A topic that is missing is a *Refusal at the third look.
func (p *Projector) sameTopic(ctx context.Context, g generation) (string, error) {
	id, err := p.Identity.TopicID(ctx, p.topic())
	if err != nil {
		return "", fmt.Errorf("ask for the id of %s: %w", p.topic(), err)
	}
	p.mu.Lock()
	if time.Since(p.looks.at) >= identityEvery {
		p.looks.at = time.Now()
		p.looks.missing++
	}
	if id != "" {
		p.looks.missing = 0
	}
	missing := p.looks.missing
	p.mu.Unlock()
	switch {
	case id == "" && g.TopicID != nil && missing >= missingLooks:
		return "", refuseLog(&kafka.IdentityError{Topic: p.topic(), Noted: *g.TopicID}, "%s is not there, and this projection was computed from the topic of that name with the id %s: bring it back; if its records are lost and that is accepted, let command-service make it again and set ACCEPT_NEW_LOG as it says", p.topic(), *g.TopicID)
	case id == "":
		return "", fmt.Errorf("%s %w", p.topic(), errNoTopic)
	case g.TopicID == nil || *g.TopicID == id:
		return id, nil
	case p.Role.candidate() != nil || p.NewLog == nil:
		return "", refuseTopic(p.topic(), *g.TopicID, id)
	}
	accepted, err := p.NewLog.Accepted(ctx, p.topic(), id)
	switch {
	case !accepted && err == nil:
		return "", refuseTopic(p.topic(), *g.TopicID, id)
	case err != nil:
		return "", &newLogAccepted{reason: fmt.Sprintf("%s is another topic than the one that was projected, and accepted: %s", p.topic(), cmp.Or(p.cause(err), err.Error()))}
	}
	return "", &newLogAccepted{reason: fmt.Sprintf("%s is another topic than the one that was projected, and accepted", p.topic()), id: id}
}

func refuseTopic(topic, was, is string) error {
	return refuseLog(&kafka.IdentityError{Topic: topic, Noted: was, Found: is}, "%s is another topic than the one that was projected: it has the id %s and had %s, so it was deleted and made anew; bring the old one back, or, if its records are given up, set ACCEPT_NEW_LOG=%s@%s and restart", topic, is, was, topic, is)
}

// awaitNewLog makes sure that a generation is filled from the accepted topic, and tells readers and the readiness what is
// waited for.
func (p *Projector) awaitNewLog(ctx context.Context, accepted *newLogAccepted) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	reason := accepted.reason
	if accepted.id != "" {
		number, err := p.NewLog.Fill(ctx, accepted.id, accepted.cluster)
		if err != nil {
			p.Logger.Debug("no generation can be filled from the new topic yet", "topic", p.topic(), "err", err)
			reason += "; no generation can be filled from it yet: " + cmp.Or(p.cause(err), err.Error())
		} else {
			reason += fmt.Sprintf("; generation %d is filled from it and will serve as soon as it has caught up", number)
		}
	}
	p.unready(PartAssignment, reason)
	return p.store.waits(ctx, reason)
}

// lookAtTopic is the look of Watch at the topic's id, every few seconds, in a session and between two.
func (p *Projector) lookAtTopic(ctx context.Context) error {
	p.mu.Lock()
	session, due := p.session, !p.stopped && time.Since(p.looks.at) >= identityEvery
	p.mu.Unlock()
	if !due {
		return nil
	}
	g, err := p.store.generation(ctx)
	if err != nil || g.TopicID == nil {
		return err // nothing is known yet that a topic could differ from
	}
	_, err = p.sameTopic(ctx, g)
	var refusal *Refusal
	var accepted *newLogAccepted
	switch {
	case errors.As(err, &refusal):
		if cluster, err := p.Log.ClusterID(ctx); err == nil {
			errors.As(judgeCluster(g, cluster), &refusal) // then that is why its topics are others
		}
		p.refuseToGoOn(ctx, refusal)
	case errors.As(err, &accepted) && session != nil:
		p.Logger.Warn("the session is given back", "topic", p.topic(), "reason", accepted.reason)
		session.End() // the next one waits for the generation that is filled from the new topic
	case errors.As(err, &accepted):
		return nil // SetUp waits
	}
	return err
}

// refuseToGoOn tells of a refusal and stops the projector.
func (p *Projector) refuseToGoOn(ctx context.Context, r *Refusal) {
	p.Logger.Error("the projection refuses to go on", "projection", p.Definition.Name, "topic", p.topic(), "reason", r.Reason)
	p.noteRefusal(ctx, r)
	p.stop(r)
}
