// SPDX-License-Identifier: Apache-2.0

// Package guest_test holds what the agent is made of to a list: it runs on the
// attacker's ground, with every capability there is.
package guest_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// modules is everything outside the standard library that the agent links.
var modules = map[string]string{
	"github.com/outguard/outguard": "the agent itself",
	"github.com/cilium/ebpf":       "loads programs, fits them to the kernel, reads rings",
	"github.com/mdlayher/vsock":    "AF_VSOCK connections in Go's network poller",
	"github.com/mdlayher/socket":   "of mdlayher/vsock",
	"golang.org/x/net":             "of mdlayher/socket",
	"golang.org/x/sync":            "of mdlayher/socket",
	"golang.org/x/sys":             "system calls",
}

// own is everything of this repository that the agent links.
var own = []string{
	"github.com/outguard/outguard/guest/bpf",
	"github.com/outguard/outguard/guest/cmd/outguard-agent",
	"github.com/outguard/outguard/guest/control",
	"github.com/outguard/outguard/guest/kerneltypes",
	"github.com/outguard/outguard/guest/sensor",
	"github.com/outguard/outguard/guest/uplink",
	"github.com/outguard/outguard/vsockproto",
	"github.com/outguard/outguard/vsockproto/link",
	"github.com/outguard/outguard/vsockproto/serial",
}

// forbidden is what the agent has no business with.
var forbidden = map[string]string{
	"os/exec":  "the agent runs no program: one that it ran would be held by what it guards",
	"net/http": "the agent speaks one protocol, to one host",
	"plugin":   "the agent loads no code",
	"C":        "the agent is static",
}

func list(t *testing.T, format string) []string {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-f", format, "./cmd/outguard-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	lines := strings.Fields(string(out))
	slices.Sort(lines)
	return slices.Compact(lines)
}

func TestModules(t *testing.T) {
	have := list(t, "{{if not .Standard}}{{.Module.Path}}{{end}}")
	for _, m := range have {
		if _, ok := modules[m]; !ok {
			t.Errorf("the agent links %s, which is not on the list", m)
		}
	}
	for m := range modules {
		if !slices.Contains(have, m) {
			t.Errorf("%s is on the list, and the agent does not link it", m)
		}
	}
}

func TestPackages(t *testing.T) {
	have := slices.DeleteFunc(list(t, "{{.ImportPath}}"), func(p string) bool {
		return !strings.HasPrefix(p, "github.com/outguard/")
	})
	if !slices.Equal(have, own) {
		t.Errorf("the agent links %q, want %q", have, own)
	}
}

// TestImports looks at our own code: a library may link more than we use.
func TestImports(t *testing.T) {
	const format = `{{if .Module}}{{if eq .Module.Path "github.com/outguard/outguard"}}{{join .Imports "\n"}}{{end}}{{end}}`
	for _, p := range list(t, format) {
		if why, ok := forbidden[p]; ok {
			t.Errorf("the agent imports %s: %s", p, why)
		}
	}
}

func TestBinarySize(t *testing.T) {
	out := filepath.Join(t.TempDir(), "outguard-agent")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "./cmd/outguard-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, msg)
	}
	st, err := os.Stat(out)
	if err != nil {
		t.Fatal(err)
	}
	const limit = 10_000_000
	if st.Size() > limit {
		t.Errorf("the agent has %d bytes, limit %d", st.Size(), limit)
	}
}
