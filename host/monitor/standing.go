package monitor

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/domain"
	"github.com/outguard/outguard/host/fdstore"
)

// standing has the connections of VMs that stand outlive this process. A device in a
// process of its own (vhost-device-vsock 0.3.0) looks at the rings when the host's end
// says something or closes; where the VM stands they are not there, it ends, and the VM
// has no vsock from then on. So the service manager keeps a copy of each such connection,
// and the next monitor lets go of it when the VM runs.
type standing struct {
	m *Monitor

	mu   sync.Mutex
	kept map[uuid.UUID]bool  // by the service manager, a connection of this process
	left map[uuid.UUID]*left // by an earlier process
}

// left is a connection of an earlier process.
type left struct {
	conn net.Conn
	runs atomic.Bool // the VM does
}

// runsWithin is how long a VM that runs has to say something on a connection that is
// left: its rings are there by then in any case.
const runsWithin = 2 * time.Second

const standingName = "standing-"

func newStanding(m *Monitor) *standing {
	return &standing{m: m, kept: map[uuid.UUID]bool{}, left: map[uuid.UUID]*left{}}
}

// take takes over what an earlier process left.
func (s *standing) take(context.Context) error {
	for name, f := range fdstore.Kept() {
		id, err := uuid.Parse(strings.TrimPrefix(name, standingName))
		var conn net.Conn
		if err == nil {
			conn, err = net.FileConn(f)
		}
		_ = f.Close()
		if err != nil {
			s.m.log.Warn("what an earlier monitor left with the service manager", "name", name, "error", err)
			continue
		}
		l := &left{conn: conn}
		s.mu.Lock()
		s.left[id] = l
		s.mu.Unlock()
		go s.letGo(id, l)
	}
	return nil
}

// letGo reads what comes, which its agent says again on its next connection, and closes
// when that is of a VM that runs.
func (s *standing) letGo(id uuid.UUID, l *left) {
	b := make([]byte, 64<<10)
	for {
		_, err := l.conn.Read(b)
		if errors.Is(err, net.ErrClosed) { // this process ends first
			return
		}
		if err != nil || l.runs.Load() {
			break
		}
	}
	s.mu.Lock()
	delete(s.left, id)
	s.mu.Unlock()
	s.remove(id)
	_ = l.conn.Close()
}

func (s *standing) remove(id uuid.UUID) {
	if err := fdstore.Remove(standingName + id.String()); err != nil {
		s.m.log.Warn("a connection of a VM stays with the service manager", "vm", id, "error", err)
	}
}

// run lets go of nothing when this process ends.
func (s *standing) run(ctx context.Context) error {
	<-ctx.Done()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.left {
		_ = l.conn.Close() // the service manager has it as well
	}
	return ctx.Err()
}

// follow takes note of a VM that stands, or does no more.
func (s *standing) follow(id uuid.UUID) {
	w, known := s.m.domains.get(id)
	stands := known && w.State == domain.Paused
	s.mu.Lock()
	defer s.mu.Unlock()
	switch kept, l := s.kept[id], s.left[id]; {
	case stands && !kept && l == nil && w.Enrolment != nil && w.Enrolment.Transport == domain.VhostUser:
		s.kept[id] = s.keep(id)
	case !stands && kept:
		delete(s.kept, id)
		s.remove(id)
	case !stands && l != nil && !l.runs.Swap(true):
		_ = l.conn.SetReadDeadline(time.Now().Add(runsWithin))
	}
}

// keep has the VM's connection kept, if it has one and somebody keeps it.
func (s *standing) keep(id uuid.UUID) bool {
	f, err := s.m.sessions.Descriptor(id)
	if err == nil && f != nil {
		err = fdstore.Put(standingName+id.String(), f)
		_ = f.Close()
	}
	if err != nil && !errors.Is(err, fdstore.ErrNone) {
		s.m.log.Warn("a VM that stands loses its channel if this monitor ends", "vm", id, "error", err)
	}
	return err == nil && f != nil
}

// followAll is follow for all that a new list may be news of.
func (s *standing) followAll() {
	for _, w := range s.m.domains.list() {
		s.follow(w.UUID)
	}
	s.mu.Lock()
	var gone []uuid.UUID
	for id := range s.left {
		if _, known := s.m.domains.get(id); !known {
			gone = append(gone, id)
		}
	}
	s.mu.Unlock()
	for _, id := range gone {
		s.follow(id)
	}
}
