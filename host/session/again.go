package session

import (
	"fmt"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
)

// again enters a frame that is on record and that the saved state does not
// know. It comes to the same as when it was received: the monitor that received
// it may have been killed before it came to anything. What that one had reported
// already is reported again, with the same index, for whoever takes the
// findings to know it by.
func (m *Manager) again(v *vm, index uint64, raw []byte) error {
	v.mu.Lock()
	h, err := vsockproto.ParseFrameHeader(raw, vsockproto.MaxFrame)
	if err != nil || int(h.Length) != len(raw) || h.Sequence != v.sess.Next || v.sess.Dead {
		v.mu.Unlock()
		return nil
	}
	v.sess.Next++
	v.sess.Bytes += uint64(h.Length)
	v.index = index
	found := v.frameAgain(&h, raw[vsockproto.FrameHeaderSize:], index)
	v.mu.Unlock()
	for _, f := range found {
		f.Detail["index"] = fmt.Sprint(index)
		m.report(v, f)
	}
	return nil
}

// frameAgain takes what is in a frame and returns what is wrong with it. Called
// with v.mu held.
func (v *vm) frameAgain(h *vsockproto.FrameHeader, payload []byte, index uint64) []engine.Finding {
	var found []engine.Finding
	var err error
	var e vsockproto.Event
	switch h.Type {
	case vsockproto.FrameEvents:
		err = v.eventsAgain(payload, &e)
	case vsockproto.FrameHeartbeat:
		var b vsockproto.Heartbeat
		if err = vsockproto.ParseHeartbeat(payload, &b); err == nil {
			found, err = v.accountAgain(&b)
		}
	case vsockproto.FramePolicyAck:
		_, err = vsockproto.ParsePolicyAck(payload)
	case vsockproto.FrameCanaryAck:
		_, err = vsockproto.ParseCanaryAck(payload)
	case vsockproto.FrameCommandAck:
		_, err = vsockproto.ParseCommandAck(payload)
	case vsockproto.FrameBye:
		var y vsockproto.Bye
		if y, err = vsockproto.ParseBye(payload); err == nil {
			found, err = v.accountAgain(&y.Heartbeat)
		}
		v.sess.Dead, v.sess.Bye = true, true
	}
	return append(found, v.wrong(err, &e, index)...)
}

// wrong makes findings of an error. One that is no gap ends the session.
func (v *vm) wrong(err error, e *vsockproto.Event, index uint64) (found []engine.Finding) {
	for _, err := range split(err) {
		rule := blame(err)
		if rule == "" {
			continue
		}
		f := accuse(rule, err)
		refer(&f, err, e, v.sess.ID, index)
		found = append(found, f)
		v.sess.Dead = v.sess.Dead || rule != RuleGap
	}
	return found
}

// split takes joined errors apart.
func split(err error) []error {
	if err == nil {
		return nil
	}
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		return j.Unwrap()
	}
	return []error{err}
}

// eventsAgain enters records into the account up to the first that is wrong, e.
func (v *vm) eventsAgain(payload []byte, e *vsockproto.Event) error {
	es, err := vsockproto.ParseEvents(payload)
	if err != nil {
		return err
	}
	count := 0
	for rest := es.Records; len(rest) > 0; count++ {
		if rest, err = e.Parse(rest); err != nil {
			return err
		}
		if err := v.enter(e); err != nil {
			return err
		}
	}
	if count != int(es.Count) {
		return countError(count, es.Count)
	}
	return nil
}

func (v *vm) accountAgain(b *vsockproto.Heartbeat) ([]engine.Finding, error) {
	if err := v.bounded(b); err != nil {
		return nil, err
	}
	return v.account(b)
}
