// SPDX-License-Identifier: Apache-2.0

package uplink

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/link"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// source is a sensor without a kernel: records are put into it, and it keeps
// an honest account of them.
type source struct {
	t    testing.TB
	wake chan struct{}

	mu       sync.Mutex
	records  [][]byte
	drawn    uint64
	taken    uint64
	mark     uint64
	settled  uint64
	lost     uint64 // critical ones
	withheld bool
	err      error

	snapshots int
	fails     int           // of them, the first
	reading   chan struct{} // what a snapshot waits for, if it is set
}

func newSource(t testing.TB) *source { return &source{t: t, wake: make(chan struct{}, 1)} }

// put writes n records.
func (s *source) put(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range n {
		s.drawn++
		e := prototest.Sample(vsockproto.FileOpen)
		e.Class, e.Sequence = vsockproto.Bulk, s.drawn
		b, err := e.Append(nil)
		if err != nil {
			s.t.Error(err)
		}
		s.records = append(s.records, b)
	}
	s.ring()
}

func (s *source) ring() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *source) Batch(b []byte) ([]byte, int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for !s.withheld && len(s.records) > 0 && len(b)+len(s.records[0]) <= cap(b) {
		b = append(b, s.records[0]...)
		s.records = s.records[1:]
		n++
	}
	s.taken += uint64(n)
	return b, n, s.err
}

func (s *source) Wait(d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-s.wake:
	case <-t.C:
	}
	return nil
}

func (s *source) Wake() error { s.ring(); return nil }

// Withhold keeps everything: all of it is bulk.
func (s *source) Withhold(withheld bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.withheld = withheld
}

func (s *source) Mark() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mark = s.drawn
	return nil
}

func (s *source) Settled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken < s.mark {
		return s.withheld
	}
	s.settled = s.mark
	return true
}

func (s *source) Counters(to []vsockproto.Counter) []vsockproto.Counter {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.settled == 0 {
		return to
	}
	if s.lost > 0 {
		to = append(to, vsockproto.Counter{Class: vsockproto.Critical, Watermark: s.lost, Lost: s.lost})
	}
	return append(to, vsockproto.Counter{Class: vsockproto.Bulk, Watermark: s.settled})
}

func (s *source) Filtering() (vsockproto.Filtering, error) { return vsockproto.Filtering{}, nil }

func (s *source) Totals() vsockproto.Totals {
	s.mu.Lock()
	defer s.mu.Unlock()
	return vsockproto.Totals{MarkedNs: s.settled + 1, Starts: s.settled}
}

func (s *source) Snapshot() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.snapshots++
	if s.snapshots <= s.fails {
		return errors.New("no snapshot")
	}
	if reading := s.reading; reading != nil {
		s.mu.Unlock()
		<-reading
		s.mu.Lock()
	}
	return nil
}

func (s *source) left() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.records)
}

// policies remembers what it was told.
type policies struct {
	mu     sync.Mutex
	begun  int
	number uint64
}

func (p *policies) Begin() { p.mu.Lock(); defer p.mu.Unlock(); p.begun++ }

func (p *policies) Apply(y vsockproto.Policy) vsockproto.PolicyAck {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.number = y.Number
	return vsockproto.PolicyAck{Number: y.Number}
}

func (p *policies) Command(c vsockproto.Command) vsockproto.CommandAck {
	return vsockproto.CommandAck{Number: c.Number, Tasks: 1}
}

func (p *policies) Canary(q vsockproto.Canary) vsockproto.CanaryAck {
	return vsockproto.CanaryAck{Nonce: q.Nonce}
}

// lab is an uplink and a host, connected in memory.
type lab struct {
	src      *source
	policies *policies
	host     *prototest.Host
	uplink   *Uplink
	saved    []link.State
	served   chan error // what each connection ended with

	mu     sync.Mutex
	down   bool // the host does not answer
	events uint64
	beats  []time.Time
	byes   []vsockproto.Bye
	acks   []vsockproto.PolicyAck
	sung   []vsockproto.CanaryAck
	totals vsockproto.Totals // of the last heartbeat
}

func newLab(t testing.TB, o prototest.HostOptions) *lab {
	l := &lab{src: newSource(t), policies: &policies{}, served: make(chan error, 100)}
	o.OnEvent = func(*vsockproto.Event) { l.mu.Lock(); l.events++; l.mu.Unlock() }
	o.OnHeartbeat = func(h *vsockproto.Heartbeat) {
		l.mu.Lock()
		l.beats, l.totals = append(l.beats, time.Now()), h.Totals
		l.mu.Unlock()
	}
	o.OnCanaryAck = func(a *vsockproto.CanaryAck) { l.mu.Lock(); l.sung = append(l.sung, *a); l.mu.Unlock() }
	o.OnBye = func(y *vsockproto.Bye) { l.mu.Lock(); l.byes = append(l.byes, *y); l.mu.Unlock() }
	o.OnPolicyAck = func(a *vsockproto.PolicyAck) { l.mu.Lock(); l.acks = append(l.acks, *a); l.mu.Unlock() }
	l.host = prototest.NewHost(&o)
	l.uplink = New(Config{
		Link:     link.NewAgent(prototest.Key, nil),
		Source:   l.src,
		Policies: l.policies,
		Dial:     l.dial,
		Hello:    func() *vsockproto.Hello { return &vsockproto.Hello{CPUs: 1, Kernel: "test"} },
		Clock:    func() (uint64, uint64) { now := uint64(time.Now().UnixNano()); return now, now },
		Save:     func(s link.State) error { l.mu.Lock(); defer l.mu.Unlock(); l.saved = append(l.saved, s); return nil },
	}, nil)
	return l
}

var errDown = errors.New("the host is down")

func (l *lab) dial(context.Context) (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down {
		return nil, errDown
	}
	agent, host := prototest.Pipe()
	go func() { l.served <- l.host.Serve(host) }()
	return agent, nil
}

func (l *lab) setDown(down bool) {
	l.mu.Lock()
	l.down = down
	l.mu.Unlock()
	if down {
		l.host.Break()
	}
}

func (l *lab) received() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.events
}

// run runs the uplink while do does something, and returns how both ended.
func (l *lab) run(t testing.TB, do func()) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.uplink.Run(ctx) }()
	do()
	stop()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// account checks that the host has every record, once, and the proof of it.
func (l *lab) account(t testing.TB) {
	t.Helper()
	for _, a := range l.host.Accounts() {
		if a.Watermark != l.src.drawn || a.Received != l.src.drawn || a.Unaccounted != 0 {
			t.Errorf("account %+v of %d records", a, l.src.drawn)
		}
	}
	if got := l.received(); got != l.src.drawn {
		t.Errorf("host has %d records of %d", got, l.src.drawn)
	}
}
