package session

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/vsockproto"
)

var (
	// ErrNoAgent: no agent of the VM is connected.
	ErrNoAgent = errors.New("no agent is connected")
	// ErrNoAnswer: the agent has not answered in time, or its connection ended.
	ErrNoAnswer = errors.New("the agent has not answered")
)

// Command has the VM's agent do something, and returns what it says came of it:
// the guest's word, and no more. The number is filled in. ctx bounds the wait.
func (m *Manager) Command(ctx context.Context, id uuid.UUID, q vsockproto.Command) (vsockproto.CommandAck, error) {
	v := m.known(id)
	if v == nil {
		return vsockproto.CommandAck{}, ErrNoAgent
	}
	answer := make(chan vsockproto.CommandAck, 1)
	v.mu.Lock()
	live := v.live
	if live == nil || !live.in {
		v.mu.Unlock()
		return vsockproto.CommandAck{}, ErrNoAgent
	}
	q.Number = max(uint64(time.Now().UnixNano()), v.commanded+1) // an earlier monitor's are lower
	v.commanded = q.Number
	if v.commands == nil {
		v.commands = map[uint64]chan vsockproto.CommandAck{}
	}
	v.commands[q.Number] = answer
	v.mu.Unlock()
	defer func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		delete(v.commands, q.Number)
	}()
	if err := live.link.Command(&q); err != nil {
		return vsockproto.CommandAck{}, fmt.Errorf("command: %w", err)
	}
	select {
	case a := <-answer:
		return a, nil
	case <-live.done:
		return vsockproto.CommandAck{}, fmt.Errorf("%w: its connection ended", ErrNoAnswer)
	case <-ctx.Done():
		return vsockproto.CommandAck{}, fmt.Errorf("%w: %w", ErrNoAnswer, ctx.Err())
	}
}

// commandAck hands an answer to who waits for it. One for which nobody waits is
// late, or an earlier monitor's.
func (c *conn) commandAck(payload []byte) error {
	a, err := vsockproto.ParseCommandAck(payload)
	if err != nil {
		return err
	}
	v := c.v
	v.mu.Lock()
	answer := v.commands[a.Number]
	delete(v.commands, a.Number)
	v.mu.Unlock()
	if answer != nil {
		answer <- a
	}
	return nil
}
