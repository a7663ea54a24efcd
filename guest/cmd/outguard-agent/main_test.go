// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/outguard/outguard/vsockproto/link"
)

func TestRunArguments(t *testing.T) {
	tests := map[string]struct {
		args   []string
		code   int
		stdout string
		stderr string
	}{
		"version":          {[]string{"--version"}, 0, "outguard-agent development", ""},
		"help":             {[]string{"--help"}, 0, "", "vsock:CID:PORT"},
		"unknown flag":     {[]string{"--pins", "x"}, 2, "", "pins"},
		"an argument":      {[]string{"start"}, 2, "", `"start"`},
		"no such channel":  {[]string{"--channel", "tcp:1:2"}, 2, "", "want vsock:CID:PORT, serial:NAME or unix:PATH"},
		"half a channel":   {[]string{"--channel", "vsock:2"}, 2, "", "port"},
		"a cid of letters": {[]string{"--channel", "vsock:two:6820"}, 2, "", "CID"},
		"no such port":     {[]string{"--channel", "serial:a/b"}, 2, "", "no port's name"},
		"no path":          {[]string{"--channel", "unix:"}, 2, "", "unix:PATH"},
		"no key":           {[]string{"--key", "/nonexistent"}, 1, "", "outguard enroll"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if code := run(t.Context(), tc.args, &stdout, &stderr); code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			if !strings.Contains(stdout.String(), tc.stdout) {
				t.Errorf("stdout %q, want %q in it", stdout.String(), tc.stdout)
			}
			if !strings.Contains(stderr.String(), tc.stderr) {
				t.Errorf("stderr %q, want %q in it", stderr.String(), tc.stderr)
			}
		})
	}
}

func TestReadKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	for _, n := range []int{0, 31, 33} {
		if err := os.WriteFile(path, make([]byte, n), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readKey(path); err == nil || !strings.Contains(err.Error(), "enroll") {
			t.Errorf("a key of %d bytes: %v", n, err)
		}
	}
	want := bytes.Repeat([]byte{7}, 32)
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	if key, err := readKey(path); err != nil || !bytes.Equal(key[:], want) {
		t.Errorf("readKey = %x, %v", key, err)
	}
}

func TestStateComesBack(t *testing.T) {
	want := link.State{Session: [16]byte{1, 15: 2}, Secret: [32]byte{3, 31: 4}}
	got, ok := unpackState(append(packState(want), 0, 0, 0))
	if !ok || got != want {
		t.Errorf("unpackState = %v, %v", got, ok)
	}
	if _, ok := unpackState(make([]byte, 64)); ok {
		t.Error("a state where none was saved")
	}
	if _, ok := unpackState(packState(want)[:10]); ok {
		t.Error("a state from a part of one")
	}
}

func TestClockRuns(t *testing.T) {
	boot, real := clock()
	if boot == 0 || real < boot {
		t.Errorf("clock = %d, %d", boot, real)
	}
}
