// Package alert tells others of a finding: a web service, or a program on this
// host. It sends once; when to send, and again, is its caller's.
package alert

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// Target is whom to tell: a webhook or a program.
type Target struct {
	Name    string
	Webhook string        // URL that the alert is POSTed to, as JSON
	Token   string        // file with what goes behind "Authorization: Bearer"; "" for none
	Command []string      // the program, by its absolute path, and its arguments: no shell; the alert is its standard input
	Timeout time.Duration // of one attempt
}

// atOnce is how many alerts may be on their way to one target.
const atOnce = 4

// maxAnswer is how much of an answer, or of a program's output, is kept.
const maxAnswer = 1024

// Sender sends alerts. It is safe for use by many goroutines.
type Sender struct {
	mu   sync.Mutex // guards busy
	busy map[string]chan struct{}
}

// New returns a sender.
func New() *Sender { return &Sender{busy: map[string]chan struct{}{}} }

// Send tells t of body, a JSON object, and returns what it answered, printable
// and no longer than a line. An error with a method Permanent() bool that returns
// true is one that trying again does not cure.
func (s *Sender) Send(ctx context.Context, t Target, body []byte) (answer string, err error) {
	free := s.slots(t.Name)
	select {
	case free <- struct{}{}:
		defer func() { <-free }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, t.Timeout)
	defer cancel()
	if len(t.Command) > 0 {
		answer, err = run(ctx, t.Command, body)
	} else {
		answer, err = post(ctx, t, body)
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) && err != nil {
		err = fmt.Errorf("not within %s: %w", t.Timeout, err)
	}
	return answer, err
}

func (s *Sender) slots(name string) chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.busy[name]
	if c == nil {
		c = make(chan struct{}, atOnce)
		s.busy[name] = c
	}
	return c
}

// permanent is an error that trying again does not cure.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }
func (permanent) Permanent() bool { return true }

// printable makes one line of what a stranger answered.
func printable(b []byte) string {
	text := strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, string(b[:min(len(b), maxAnswer)]))
	return strings.Join(strings.Fields(text), " ")
}
