package alert

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// within is what an attempt has: little where it is to fail so, else as much as a
// busy machine may need.
func within(err string) time.Duration {
	if err == "not within" {
		return time.Second
	}
	return time.Minute
}

func isPermanent(err error) bool {
	var p interface{ Permanent() bool }
	return errors.As(err, &p) && p.Permanent()
}

func TestWebhook(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		switch r.URL.Path {
		case "/hook":
			if string(b) != `{"a":1}` || r.Header.Get("Authorization") != "Bearer s3cret" || r.Header.Get("Content-Type") != "application/json" || r.Method != "POST" {
				w.WriteHeader(http.StatusBadRequest)
			}
			_, _ = io.WriteString(w, "taken\x1b[31m\r\nthanks")
		case "/busy":
			w.WriteHeader(http.StatusServiceUnavailable)
		case "/elsewhere":
			http.Redirect(w, r, "/hook", http.StatusTemporaryRedirect)
		case "/long":
			for range 1000 {
				_, _ = io.WriteString(w, strings.Repeat("x", 10_000))
			}
		case "/slow":
			<-r.Context().Done()
		}
	}))
	defer s.Close()
	for _, c := range []struct {
		path, answer, err string
		permanent         bool
	}{
		{"/hook", "200 OK: taken [31m thanks", "", false},
		{"/busy", "", "503 Service Unavailable", false},
		{"/elsewhere", "", "307", false},
		{"/slow", "", "not within", false},
	} {
		answer, err := New().Send(t.Context(), Target{Name: "a", Webhook: s.URL + c.path, Token: token, Timeout: within(c.err)}, []byte(`{"a":1}`))
		if answer != c.answer || (c.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.err) || isPermanent(err) != c.permanent {
			t.Errorf("%s: %q, %v", c.path, answer, err)
		}
		if err != nil && strings.Contains(err.Error(), c.path) {
			t.Errorf("the error shows the path, which may be a secret: %v", err)
		}
	}
	if answer, err := New().Send(t.Context(), Target{Webhook: s.URL + "/long", Timeout: time.Minute}, nil); err != nil || len(answer) > maxAnswer+10 {
		t.Errorf("%d bytes of an endless answer, %v", len(answer), err)
	}
	if _, err := New().Send(t.Context(), Target{Webhook: s.URL + "/hook", Timeout: time.Minute}, nil); !isPermanent(err) || !strings.Contains(err.Error(), "400") {
		t.Errorf("without the token: %v", err)
	}
	s.Close()
	if _, err := New().Send(t.Context(), Target{Webhook: s.URL + "/hook", Timeout: time.Minute}, nil); err == nil || isPermanent(err) {
		t.Errorf("nobody there: %v", err)
	}
}

func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "told")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCommand(t *testing.T) {
	for _, c := range []struct {
		text, answer, err string
		permanent         bool
	}{
		{`cat; echo " $1 ${HOME-none}"`, `{"a":1} $(id) none`, "", false}, // no shell sees the argument
		{"echo no room >&2; exit 75", "", "exit status 75: no room", false},
		{"sleep 60 & wait", "", "not within", false},
		{"exec head -c 100000 /dev/zero", "", "", false}, // all of it taken, nothing printable
		{"exec >&- 2>&- <&-; exit 0", "", "", false},     // reads nothing
	} {
		began := time.Now()
		answer, err := New().Send(t.Context(), Target{Command: []string{script(t, c.text), "$(id)"}, Timeout: within(c.err)}, []byte(`{"a":1}`))
		if answer != c.answer || (c.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.err) || isPermanent(err) != c.permanent {
			t.Errorf("%s: %q, %v", c.text, answer, err)
		}
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("%s: took %s", c.text, took)
		}
	}
	if _, err := New().Send(t.Context(), Target{Command: []string{"/no/such/program"}, Timeout: time.Minute}, nil); !isPermanent(err) {
		t.Errorf("no program: %v", err)
	}
}

// TestDeadlineEndsTheWholeGroup: what the program started ends with it.
func TestDeadlineEndsTheWholeGroup(t *testing.T) {
	dir := t.TempDir()
	path := script(t, `sleep 600 & echo $! >"$1/new"; mv "$1/new" "$1/pid"; wait`)
	var pid []byte
	for timeout := time.Second; len(pid) == 0; timeout *= 2 { // again where it came before there was a child
		if _, err := New().Send(t.Context(), Target{Command: []string{path, dir}, Timeout: timeout}, nil); err == nil {
			t.Fatal("no deadline")
		}
		var err error
		if pid, err = os.ReadFile(filepath.Join(dir, "pid")); err != nil && timeout > time.Minute {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
	}
	t.Errorf("its child %s outlived the deadline", pid)
}

// TestAtOnce: few alerts are on their way to one target, and one target that
// hangs holds up no other.
func TestAtOnce(t *testing.T) {
	arrived := make(chan struct{}, 100)
	hang := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-r.Context().Done()
	}))
	defer hang.Close()
	ok := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer ok.Close()
	ctx, cancel := context.WithCancel(t.Context())
	s := New()
	var wg sync.WaitGroup
	for range 3 * atOnce {
		wg.Go(func() { _, _ = s.Send(ctx, Target{Name: "hangs", Webhook: hang.URL, Timeout: time.Minute}, nil) })
	}
	for range atOnce {
		<-arrived
	}
	if _, err := s.Send(t.Context(), Target{Name: "ok", Webhook: ok.URL, Timeout: 10 * time.Second}, nil); err != nil {
		t.Error(err)
	}
	if n := len(arrived); n != 0 {
		t.Errorf("%d more at once", n)
	}
	cancel()
	wg.Wait()
}
