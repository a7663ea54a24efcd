package session

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// TestCommand: an answer is that of its command, one that does not come and a
// connection that ends are told apart from an agent that is not there, and
// nothing of it is a finding.
func TestCommand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.manager(&Options{Canary: time.Hour})
		q := vsockproto.Command{Kind: vsockproto.CommandKill, TGID: 7, StartNs: 9}
		if _, err := m.Command(t.Context(), uuid.New(), q); !errors.Is(err, ErrNoAgent) {
			t.Errorf("of an unknown VM: %v", err)
		}
		var slow atomic.Int64
		slow.Store(int64(100 * time.Millisecond))
		a := prototest.NewAgent(&prototest.AgentOptions{Obey: func(q vsockproto.Command) vsockproto.CommandAck {
			time.Sleep(time.Duration(slow.Load()))
			return vsockproto.CommandAck{Tasks: q.TGID}
		}})
		c := dial(t.Context(), m, a)
		<-a.Up()
		synctest.Wait()
		for i := range uint32(3) {
			q.TGID = i + 1
			if ack, err := m.Command(t.Context(), vmID, q); err != nil || ack.Tasks != i+1 || ack.BootNs == 0 {
				t.Errorf("%+v, %v", ack, err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := m.Command(ctx, vmID, q); !errors.Is(err, ErrNoAnswer) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("no answer in time: %v", err)
		}
		time.Sleep(time.Second) // the late one is nobody's
		slow.Store(int64(time.Minute))
		ended := make(chan error, 1)
		go func() { _, err := m.Command(t.Context(), vmID, q); ended <- err }()
		synctest.Wait()
		c.hangUp()
		if err := <-ended; !errors.Is(err, ErrNoAnswer) {
			t.Errorf("the connection ended: %v", err)
		}
		if _, err := m.Command(t.Context(), vmID, q); !errors.Is(err, ErrNoAgent) {
			t.Errorf("of one that has gone: %v", err)
		}
		want(t, "findings", w.rules(), "")
		time.Sleep(2 * time.Minute) // the agent's goroutine ends
	})
}
