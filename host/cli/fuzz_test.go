package cli

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/decide"
	"github.com/outguard/outguard/host/evidence"
)

// FuzzLines holds that whatever stands in an answer, also one that no server of
// ours has made printable, a line stays a line and a terminal only shows it.
func FuzzLines(f *testing.F) {
	for _, s := range []string{"/bin/sh", "", "\x1b]0;x\a", "a\nb", "\u202e", "\xff", "\u009b31m", "\t", `"`, `\`} {
		f.Add(s, uint32(1), uint32(256))
	}
	f.Fuzz(func(t *testing.T, s string, n, m uint32) {
		subject := &apipb.Subject{Tgid: n, Comm: s}
		file := &apipb.File{Path: s, PathFlags: []string{s}, Digest: s}
		for _, e := range []*apipb.Event{
			{Vm: s, Type: s, Received: s, Error: s, Subject: subject},
			{Vm: s, Type: s, Subject: subject, File: file, Exec: &apipb.Exec{Filename: s, Argv: []string{s, s}, ArgvTruncated: true, Secure: true}},
			{File: file, Mmap: &apipb.Mmap{Prot: n}}, {Mmap: &apipb.Mmap{Prot: m}}, {File: file},
			{Address: &apipb.Address{Family: n, Text: s}}, {Socket: &apipb.Socket{Family: n, Type: m, Backlog: n}},
			{Signal: &apipb.Signal{Number: n}}, {Newtask: &apipb.Newtask{Child: &apipb.Task{Pid: n, Tgid: m}}},
			{Exit: &apipb.Exit{Code: n}}, {Unknown: []byte(s)}, {},
		} {
			harmlessLine(t, eventLine(e))
		}
		harmlessLine(t, findingLine(&apipb.Finding{
			Id: s, Vm: s, Rule: s, Severity: s, Reason: s, Comm: s, Path: s, Technique: s, At: s, Pid: n, Ref: &apipb.Ref{Index: uint64(m)},
		}))
		var out bytes.Buffer
		a := &app{out: bufio.NewWriter(&out)}
		a.fact(s, s)
		tab := a.table("A", "B")
		tab.row(s, s)
		tab.flush()
		_ = a.out.Flush()
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if len(lines) != 3 {
			t.Fatalf("%d lines: %q", len(lines), out.String())
		}
		for _, l := range lines {
			harmlessLine(t, l)
		}
	})
}

func harmlessLine(t *testing.T, s string) {
	t.Helper()
	if !utf8.ValidString(s) || strings.IndexFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) >= 0 {
		t.Fatalf("%q", s)
	}
}

// FuzzSince reads any text as a time that somebody typed: refused, or one that
// is not after now, unless it says so itself.
func FuzzSince(f *testing.F) {
	for _, s := range []string{"10m", "3d", "65536d", "15:04", "2026-01-02 15:04", "2026-01-02T15:04:05Z", "-5m", "9999999h", "20GiB", "4294967295TiB"} {
		f.Add(s)
	}
	now := time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := parseSize(s); err != nil && n != 0 {
			t.Errorf("%q is %d beside an error", s, n)
		}
		at, err := parseSince(s, now)
		if err != nil {
			return
		}
		if _, isDuration := time.ParseDuration(s); isDuration == nil && at.After(now) {
			t.Errorf("%q is %s", s, at)
		}
	})
}

// FuzzPaths reads any text as the configuration, of which the command line needs
// the paths.
func FuzzPaths(f *testing.F) {
	f.Add([]byte("state_dir: /srv/og\nlisten: {hybrid_dir: /x}\nengines: [{name: a}]\n"))
	f.Add([]byte("a: &a [*a]\n"))
	file := filepath.Join(f.TempDir(), "c.yaml")
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := (&app{config: file}).paths()
		if err == nil && (p.State == "" || p.Run == "" || p.Listen.HybridDir == "") {
			t.Errorf("%+v", p)
		}
	})
}

// FuzzDigest reads any text as a digest in hex: refused, or the same digest again.
func FuzzDigest(f *testing.F) {
	f.Add(strings.Repeat("0f", 32))
	f.Add(strings.Repeat("0G", 32))
	f.Add("00")
	f.Fuzz(func(t *testing.T, s string) {
		v, err := parseDigest(s)
		if err == nil && hex.EncodeToString(v[:]) != strings.ToLower(s) {
			t.Errorf("%q is %x", s, v[:])
		}
	})
}

// FuzzPlaybookTest reads any range, and any record as a finding, a decision or a
// note.
func FuzzPlaybookTest(f *testing.F) {
	f.Add("web:5-10", uint16(evidence.KindFinding), []byte(`{"ID":"a","Severity":4}`))
	f.Add("a:b", uint16(evidence.KindDecision), []byte(`{"Finding":"a","Steps":["pause"]}`))
	f.Add("11111111-1111-4111-8111-111111111111:9-1", uint16(evidence.KindNote), []byte(`{"what":"domain-started"}`))
	vm := uuid.MustParse("11111111-1111-4111-8111-111111111111")
	f.Fuzz(func(t *testing.T, text string, kind uint16, payload []byte) {
		p := &policyTest{names: map[uuid.UUID]string{vm: "web"}}
		s, err := p.parseRange(text, []uuid.UUID{vm})
		if (err == nil) != (s.vm == vm) || (err == nil && s.from >= s.to) {
			t.Errorf("%q is %+v, %v", text, s, err)
		}
		m, d, err := p.meet(vm, &evidence.Record{Kind: evidence.Kind(kind), Payload: payload})
		if err != nil && (m != nil || d != nil) {
			t.Error("something beside an error")
		}
		if m != nil && m.finding != nil {
			decide.NewReplay(decide.Default()).Find(m.finding, "web")
		}
		if d != nil {
			would(d)
		}
	})
}
