// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fifo is a file that nobody answers for: to open it takes until a writer comes.
func fifo(t *testing.T, name string) (path string, answer func()) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, func() {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
	}
}

// TestNoAnswer: what does not answer is left behind, so often and no more, and when it
// answers after all, that is undone.
func TestNoAnswer(t *testing.T) {
	p := patience{most: 2, until: time.Now().Add(time.Hour)}
	asked, undone := make(chan struct{}, 9), make(chan struct{}, 9)
	open := func(path string) error {
		var f *os.File
		var err error
		gone := p.ask(func(*asking) { asked <- struct{}{}; f, err = os.Open(path) }, func() { _ = f.Close(); undone <- struct{}{} })
		if gone != nil {
			return gone
		}
		if err == nil {
			_ = f.Close()
		}
		return err
	}
	one, answerOne := fifo(t, "one")
	two, answerTwo := fifo(t, "two")
	here := filepath.Join(t.TempDir(), "here")
	for _, c := range []struct {
		path string
		want error
	}{{one, errNoAnswer}, {filepath.Dir(here), nil}, {here, os.ErrNotExist}, {two, errNoAnswer}} {
		p.stall = time.Minute
		if c.want == errNoAnswer {
			p.stall = 100 * time.Millisecond
		}
		if err := open(c.path); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.path, err, c.want)
		}
	}
	if err := open(filepath.Dir(here)); !errors.Is(err, errNoAnswer) || len(asked) != 4 {
		t.Errorf("after two that did not answer: %v, %d were asked", err, len(asked))
	}
	answerOne()
	answerTwo()
	for range 2 {
		select {
		case <-undone:
		case <-time.After(time.Minute):
			t.Fatal("what came late is not undone")
		}
	}
	for end := time.Now().Add(time.Minute); p.gone.Load() > 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if err := open(filepath.Dir(here)); err != nil {
		t.Errorf("when all have answered: %v", err)
	}
}

// TestAnswersTooSlowly: what moves is waited for, and not for ever.
func TestAnswersTooSlowly(t *testing.T) {
	p := patience{stall: time.Minute, most: 9, until: time.Now().Add(100 * time.Millisecond)}
	ended := make(chan struct{})
	if err := p.ask(func(a *asking) {
		for a.wanted() {
			a.moved()
			time.Sleep(time.Millisecond)
		}
	}, func() { close(ended) }); !errors.Is(err, errNoAnswer) {
		t.Error(err)
	}
	<-ended
	if err := p.ask(func(*asking) { t.Error("it is asked when the time is over") }, func() {}); !errors.Is(err, errNoAnswer) {
		t.Error(err)
	}
}

// slow is a program that comes byte by byte, and after so many no more until it is told.
type slow struct {
	each  time.Duration
	left  int
	until chan struct{}
}

func (s *slow) Read(b []byte) (int, error) {
	if s.left == 0 {
		<-s.until
	}
	time.Sleep(s.each)
	s.left--
	b[0] = 'a'
	return 1, nil
}

// TestASlowProgramIsRead, for as long as it takes, and one that stops coming is not: the
// next is digested all the same.
func TestASlowProgramIsRead(t *testing.T) {
	p := &patience{stall: 2 * time.Second, most: 1, until: time.Now().Add(time.Hour)}
	l := looker{left: 100, patience: p}
	whole := &slow{each: 100 * time.Millisecond, left: 1 << 30}
	if sum, err := l.sum(whole, 30); err == nil || sum != nil || l.left != 69 { // it has grown
		t.Errorf("%x, %v, %d left", sum, err, l.left)
	}
	p.stall = 50 * time.Millisecond
	stops := &slow{left: 0, until: make(chan struct{})}
	if sum, err := l.sum(stops, 20); !errors.Is(err, errNoAnswer) || sum != nil || l.left != 49 {
		t.Errorf("%x, %v, %d left", sum, err, l.left)
	}
	close(stops.until) // it comes after all, and must not be in the next one's digest
	for end := time.Now().Add(time.Minute); p.gone.Load() > 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	p.stall = time.Minute
	path := filepath.Join(t.TempDir(), "next")
	if err := os.WriteFile(path, []byte("next"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sum, err := l.sum(f, 4)
	if want := sha256.Sum256([]byte("next")); err != nil || string(sum) != string(want[:]) {
		t.Errorf("%x, %v", sum, err)
	}
}
