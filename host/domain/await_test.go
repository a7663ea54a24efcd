package domain

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
)

// awaited bounds what a test waits for that comes within moments: a machine may
// be loaded, or twenty times slower.
const awaited = 2 * time.Minute

// await waits until it is so.
func await(t testing.TB, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(awaited); !so(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %s for %s", awaited, what)
		}
	}
}

// cpu waits until the vCPUs are seen to run, or for half a second not to.
func cpu(t *testing.T, c *Client, vm uuid.UUID, runs bool) {
	t.Helper()
	what := map[bool]string{true: "the vCPUs to run", false: "the vCPUs to stand"}[runs]
	await(t, what, func() bool {
		before, err := c.CPUTime(t.Context(), vm)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond)
		after, err := c.CPUTime(t.Context(), vm)
		if err != nil {
			t.Fatal(err)
		}
		return (after > before) == runs
	})
}

// seen is what a watcher was told.
type seen struct {
	mu  sync.Mutex
	all []Event
}

func watch(t testing.TB, c *Client) *seen {
	t.Helper()
	s := &seen{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Watch(ctx, func(e Event) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.all = append(s.all, e)
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	await(t, "the watcher to connect", func() bool { return s.resyncs() > 0 })
	return s
}

// resyncs is how often it was told to look again. Events of others' domains come
// between.
func (s *seen) resyncs() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.all {
		if e.Kind == Resync {
			n++
		}
	}
	return n
}

// want waits for events of one domain, in order, others between them allowed.
func (s *seen) want(t *testing.T, vm uuid.UUID, words ...string) {
	t.Helper()
	var got []string
	for end := time.Now().Add(awaited); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		var left []string
		if got, left = s.of(vm, words); len(left) == 0 {
			return
		}
	}
	t.Errorf("events %q, want %q", got, words)
}

// of is what was seen of one domain, and those of words that were not.
func (s *seen) of(vm uuid.UUID, words []string) (got, left []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.all {
		if e.VM != vm {
			continue
		}
		w := strings.TrimSpace(e.Kind.String() + " " + e.Reason)
		if got = append(got, w); len(words) > 0 && w == words[0] {
			words = words[1:]
		}
	}
	return got, words
}
