// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// errNoAnswer is of a file system that does not answer, as of a server that is away.
var errNoAnswer = errors.New("the file system does not answer")

// patience waits for file systems that others mount and serve. What is asked of one may
// never return, and nothing ends a thread that waits in the kernel: it is left behind,
// and no more is asked while there are so many.
type patience struct {
	stall time.Duration // how long nothing may move
	most  int32         // how many may be left behind at a time
	until time.Time     // and until when all is waited for
	gone  atomic.Int32
}

// asking is one question, under way.
type asking struct {
	moves    atomic.Uint64
	mu       sync.Mutex
	ended    bool
	deserted bool
}

// moved says that the file system answers.
func (a *asking) moved() { a.moves.Add(1) }

// wanted reports whether somebody still waits for the answer.
func (a *asking) wanted() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return !a.deserted
}

// desert leaves it behind, unless it has ended.
func (a *asking) desert() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.deserted = !a.ended
	return a.deserted
}

// end reports whether somebody takes the answer.
func (a *asking) end() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended = true
	return !a.deserted
}

// ask runs do, and undo after it if by then nobody waited any more. Only where ask
// returns nil may what do has written be read: otherwise do may still be at it.
func (p *patience) ask(do func(*asking), undo func()) error {
	left := time.Until(p.until)
	if p.gone.Load() >= p.most || left <= 0 {
		return errNoAnswer
	}
	a, done := &asking{}, make(chan struct{})
	go func() {
		do(a)
		if !a.end() {
			undo()
			p.gone.Add(-1)
		}
		close(done)
	}()
	last := time.After(left)
	for {
		before, over := a.moves.Load(), false
		select {
		case <-done:
			return nil
		case <-last:
			over = true
		case <-time.After(p.stall):
			over = a.moves.Load() == before
		}
		if over && a.desert() {
			p.gone.Add(1)
			return errNoAnswer
		}
	}
}
