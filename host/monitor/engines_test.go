package monitor_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"
	"github.com/hashicorp/go-plugin"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// hostile is an engine that is what its binary is called. The test's binary is
// it, as a process of its own that outguardd starts.
type hostile struct{ what string }

func serveHostile(name string) {
	if name == "contract" {
		other := engine.Handshake
		other.ProtocolVersion++
		plugin.Serve(&plugin.ServeConfig{HandshakeConfig: other, Plugins: plugin.PluginSet{}, GRPCServer: plugin.DefaultGRPCServer})
		return
	}
	engine.Serve(&hostile{name})
}

func (h *hostile) Describe() engine.Description {
	return engine.Description{Name: h.what, Version: "1"}
}

func (h *hostile) Judge(b *engine.Batch, report func(engine.Finding)) error {
	f := engine.Finding{Rule: h.what + "/seen", Severity: engine.Low, Reason: "Judged."}
	switch h.what {
	case "killed":
		os.Exit(3)
	case "hung":
		select {}
	case "leaking":
		var all [][]byte
		for {
			all = append(all, make([]byte, 16<<20))
			for i := 0; i < 16<<20; i += 4096 {
				all[len(all)-1][i] = 1
			}
			runtime.KeepAlive(all)
		}
	case "lying":
		f.Ref = &engine.Ref{Session: b.Session, Index: b.Index, CPU: 1, Sequence: 4711}
	case "flooding":
		for range 2 * engine.MaxBatchFindings {
			report(f)
		}
	}
	report(f)
	return nil
}

func (*hostile) Models() []engine.Model { return nil }
func (*hostile) Learn(context.Context, uuid.UUID) (engine.Model, error) {
	return engine.Model{}, errors.ErrUnsupported
}
func (*hostile) Seal(context.Context, uuid.UUID) (engine.Model, error) {
	return engine.Model{}, errors.ErrUnsupported
}
func (*hostile) Checkpoint(uuid.UUID) ([]byte, error) { return []byte("state"), nil }
func (*hostile) Restore(uuid.UUID, []byte) error      { return nil }

// named copies this test's binary to where outguardd finds it as that engine.
func (h *host) named(what string) (path string) {
	h.t.Helper()
	self, err := os.Executable()
	if err != nil {
		h.t.Fatal(err)
	}
	from, err := os.Open(self)
	if err != nil {
		h.t.Fatal(err)
	}
	defer from.Close()
	path = filepath.Join(h.root, what)
	to, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err == nil {
		_, err = io.Copy(to, from)
		err = errors.Join(err, to.Close())
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return path
}

// TestHostileEngines runs an engine beside tsem that is killed, hangs, leaks,
// lies, or is of another contract: it is started again and again until a circuit
// opens, and each of that is a finding. Of one that floods so much is kept as can
// be. tsem judges every event meanwhile.
func TestHostileEngines(t *testing.T) {
	if underRace {
		t.Skip("under the race detector: it takes more memory than an engine may have; make vm tests this without it")
	}
	for what, rules := range map[string][]string{
		"killed":   {"engine/ended", "engine/poison", "engine/circuit"},
		"hung":     {"engine/silent"}, // its circuit takes six deadlines of 5 s
		"leaking":  {"engine/ended", "engine/poison", "engine/circuit"},
		"lying":    {"engine/lied", "engine/poison", "engine/circuit"},
		"flooding": {"engine/flood"},
		"contract": {"engine/start", "engine/circuit"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			dir, err := build()
			if err != nil {
				t.Fatal(err)
			}
			// With cgo, as this test's binary has it, each thread's stack counts 8 MiB.
			h.configure(fmt.Sprintf("engines:\n  - {name: tsem, path: %s/outguard-engine-tsem}\n  - {name: %s, path: %s, memory: 256MiB}\n", dir, what, h.named(what)))
			h.start()
			a := prototest.NewAgent(nil)
			stop := h.persistent(a)
			defer stop()
			send(t, a, opened("/etc/passwd"))
			h.seal()
			var want []string
			for i := range 10 {
				want = append(want, fmt.Sprintf("/new%d", i))
				send(t, a, opened(want[i]))
			}
			h.awaitPaths(want)
			for _, rule := range rules {
				if f := h.awaitAnywhere(rule); !strings.Contains(f.Reason, what) {
					t.Errorf("%s does not name the engine: %s", rule, f.Reason)
				}
			}
			for _, f := range h.findings() {
				if f.Rule == what+"/seen" && what != "flooding" {
					t.Errorf("a finding of it stands: %v", f)
				}
			}
			stop()
			if err := h.end(syscall.SIGTERM); err != nil {
				t.Error(err)
			}
			h.verify()
			if got := h.read().paths(); !slices.Equal(got, want) {
				t.Errorf("tsem found %q, want %q", got, want)
			}
		})
	}
}

// awaitAnywhere waits for a finding of the VM's or of the host's.
func (h *host) awaitAnywhere(rule string) (found *apipb.Finding) {
	h.t.Helper()
	h.eventually(rule, func() error {
		s, err := h.api.Findings(h.t.Context(), &apipb.FindingsRequest{})
		if err != nil {
			return err
		}
		defer s.Close()
		for s.Receive() {
			if f := s.Msg().Finding; f.Rule == rule {
				found = f
				return nil
			}
		}
		return errors.Join(s.Err(), errors.New("no such finding"))
	})
	return found
}
