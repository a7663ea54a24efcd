package monitor_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/api/apipb/apipbconnect"
	"github.com/outguard/outguard/host/domain"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/host/session"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/vsockproto"
	"github.com/outguard/outguard/vsockproto/link"
	"github.com/outguard/outguard/vsockproto/prototest"
)

// These tests run outguardd and its engine as the processes that they are, with
// agents that prototest speaks for and, by intent, no libvirtd: what guests send
// must be recorded and judged all the same. The whole with real guests is in
// vmtests.

// build makes the two binaries once; buildToDie with the points at which tests
// have the monitor killed.
var (
	build      = sync.OnceValues(func() (string, error) { return buildWith() })
	buildToDie = sync.OnceValues(func() (string, error) { return buildWith("-tags", "failpoint") })
)

func buildWith(flags ...string) (string, error) {
	dir, err := os.MkdirTemp("", "outguard-daemon-")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // engines may run as a user of their own
		return "", err
	}
	args := append([]string{"build", "-buildvcs=false", "-o", dir + "/"}, flags...)
	out, err := exec.Command("go", append(args,
		"github.com/outguard/outguard/host/cmd/outguardd",
		"github.com/outguard/outguard/plugins/cmd/outguard-engine-tsem")...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	builtMu.Lock()
	defer builtMu.Unlock()
	built = append(built, dir)
	return dir, err
}

var (
	builtMu sync.Mutex
	built   []string // to be removed
)

func TestMain(m *testing.M) {
	if os.Getenv(engine.Handshake.MagicCookieKey) != "" {
		serveHostile(filepath.Base(os.Args[0]))
		os.Exit(0)
	}
	syscall.Umask(0o022) // engines may run as a user of their own, who has to come at what is built
	code := m.Run()
	for _, dir := range built {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// host is one monitor's place on disk; the process comes and goes.
type host struct {
	t      testing.TB
	root   string
	config string
	vm     uuid.UUID
	build  func() (string, error)
	env    []string
	cmd    *exec.Cmd
	log    bytes.Buffer
	api    apipbconnect.OutguardClient
}

// newHost enrols one domain called web with prototest's key.
func newHost(t testing.TB) *host {
	t.Helper()
	root, err := os.MkdirTemp("", "og") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, root: root, config: filepath.Join(root, "outguard.yaml"), vm: uuid.New(), build: build}
	h.write(h.config, fmt.Sprintf(`
state_dir: %[1]s/state
run_dir: %[1]s/run
libvirt: %[1]s/no-libvirt
listen: {vsock: "off"}
session: {heartbeat: 200ms, canary: 1h}
`, root))
	h.enrol(h.vm, "web")
	h.api = api.NewClient(root + "/run/api.sock")
	return h
}

// beat sets another heartbeat. It belongs before start.
func (h *host) beat(every string) {
	h.t.Helper()
	text, err := os.ReadFile(h.config)
	if err != nil {
		h.t.Fatal(err)
	}
	h.write(h.config, strings.Replace(string(text), "heartbeat: 200ms", "heartbeat: "+every, 1))
}

// enrol makes a domain known, as `outguard enroll` does.
func (h *host) enrol(vm uuid.UUID, name string) {
	h.t.Helper()
	socket := h.root + "/run/vsock/" + name
	text, err := json.Marshal(domain.Enrolment{
		Version: 1, UUID: vm, Name: name, Transport: domain.VhostUser, CID: 42,
		Vhost: socket + ".vhost", Socket: socket + ".sock",
		KeyFile: h.root + "/key", Key: prototest.Key, Enrolled: time.Now().UTC(),
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.write(filepath.Join(h.root, "state", "enroll", vm.String()+".json"), string(text))
}

func (h *host) write(path, text string) {
	h.t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		h.t.Fatal(err)
	}
}

// start starts outguardd and waits until it answers.
func (h *host) start() {
	h.t.Helper()
	dir, err := h.build()
	if err != nil {
		h.t.Fatal(err)
	}
	h.cmd = exec.Command(filepath.Join(dir, "outguardd"), "--config", h.config)
	h.cmd.Env = append(os.Environ(), h.env...)
	h.cmd.Stderr = &h.log
	if err := h.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		if h.cmd.ProcessState == nil {
			h.end(syscall.SIGKILL)
		}
		if h.t.Failed() {
			h.t.Logf("outguardd's log:\n%s", h.log.String())
		}
	})
	h.eventually("outguardd and its engine answer", func() error {
		s, err := h.api.Status(h.t.Context(), &apipb.StatusRequest{})
		if err == nil && s.Engines[0].State != "running" {
			err = fmt.Errorf("engine: %v", s.Engines[0])
		}
		return err
	})
}

// end ends the process by a signal and returns how it ended.
func (h *host) end(s os.Signal) error {
	h.t.Helper()
	if err := h.cmd.Process.Signal(s); err != nil {
		h.t.Fatal(err)
	}
	return h.cmd.Wait()
}

// patience is for what has to come about on a busy machine, too.
const patience = 2 * time.Minute

func (h *host) eventually(what string, try func() error) {
	h.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(25 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			h.t.Fatalf("%s: %v", what, err)
		}
	}
}

// dial connects to web's socket.
func (h *host) dial() (conn net.Conn) {
	h.t.Helper()
	h.eventually("web's socket", func() (err error) {
		conn, err = net.Dial("unix", h.root+"/run/vsock/web.sock_6820")
		return err
	})
	return conn
}

// connect has the agent speak to web's socket, from where it has been accepted
// until the returned stop.
func (h *host) connect(a *prototest.Agent) (stop func() error) {
	h.t.Helper()
	conn := h.dial()
	ctx, cancel := context.WithCancel(h.t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx, conn) }()
	h.accepted(a, done)
	return func() error { cancel(); return <-done }
}

// accepted waits until the agent has been, or its connection has ended.
func (h *host) accepted(a *prototest.Agent, ended <-chan error) {
	h.t.Helper()
	select {
	case <-a.Up():
	case err := <-ended:
		h.t.Fatalf("the agent's connection ended: %v", err)
	case <-time.After(patience):
		h.t.Fatal("the agent is not accepted")
	}
}

// findings lists the rules of the VM's findings, oldest first.
func (h *host) findings() []*apipb.Finding {
	h.t.Helper()
	s, err := h.api.Findings(h.t.Context(), &apipb.FindingsRequest{Vm: h.vm.String()})
	if err != nil {
		h.t.Fatal(err)
	}
	defer s.Close()
	var out []*apipb.Finding
	for s.Receive() {
		out = append(out, s.Msg().Finding)
	}
	if err := s.Err(); err != nil {
		h.t.Fatal(err)
	}
	return out
}

func (h *host) await(rule string) *apipb.Finding {
	h.t.Helper()
	var found *apipb.Finding
	h.eventually(rule, func() error {
		for _, f := range h.findings() {
			if f.Rule == rule {
				found = f
				return nil
			}
		}
		return errors.New("no such finding")
	})
	return found
}

// metric looks for a line among the metrics on the API's socket.
func (h *host) metric(line string) error {
	c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", h.root+"/run/api.sock")
	}}}
	defer c.CloseIdleConnections()
	r, err := c.Get("http://outguard/metrics")
	if err != nil {
		return err
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err == nil && !strings.Contains(string(text), "\n"+line+"\n") {
		err = fmt.Errorf("no %s in %s", line, text)
	}
	return err
}

// verify has the whole record verified from outside.
func (h *host) verify() evidence.Report {
	h.t.Helper()
	v, err := evidence.LoadVerifier(filepath.Join(h.root, "state", evidence.PubFile))
	if err != nil {
		h.t.Fatal(err)
	}
	r, err := evidence.Verify(evidence.StreamDir(filepath.Join(h.root, "state", evidence.StoreDir), h.vm), v)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

func opened(path string) *vsockproto.Event {
	e := prototest.Sample(vsockproto.FileOpen)
	e.Path.Data = []byte(path)
	return e
}

// seal seals the VM's model, once there is one.
func (h *host) seal() {
	h.t.Helper()
	h.eventually("seal", func() error {
		_, err := h.api.SealModel(h.t.Context(), &apipb.SealModelRequest{Vm: h.vm.String()})
		return err
	})
}

func send(t testing.TB, a *prototest.Agent, events ...*vsockproto.Event) {
	t.Helper()
	if err := errors.Join(a.Send(t.Context(), events...), a.Drained(t.Context())); err != nil {
		t.Fatal(err)
	}
}

// A service manager is told when the monitor is ready and when it stops.
func TestDaemonNotifies(t *testing.T) {
	h := newHost(t)
	path := h.root + "/notify"
	told, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer told.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	h.start()
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	var said []string
	for buf := make([]byte, 256); len(said) < 2; {
		if err := told.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := told.Read(buf)
		if err != nil {
			t.Fatalf("said only %q: %v", said, err)
		}
		said = append(said, string(buf[:n]))
	}
	if !slices.Equal(said, []string{"READY=1", "STOPPING=1"}) {
		t.Errorf("said %q", said)
	}
}

// Without a libvirtd everything but the response works, and the response is
// there as an order that says why it has not come about yet.
func TestDaemonWithoutLibvirt(t *testing.T) {
	h := newHost(t)
	h.start()
	a := prototest.NewAgent(nil)
	stop := h.connect(a)
	send(t, a, opened("/etc/passwd"))
	h.seal()
	send(t, a, opened("/etc/passwd"), opened("/etc/shadow"))
	f := h.await("tsem/violation")
	if f.Path != "/etc/shadow" || f.Received == "" || f.Ref == nil {
		t.Errorf("finding: %v", f)
	}
	h.eventually("an order that waits, and why", func() error {
		r, err := h.api.ListOrders(t.Context(), &apipb.ListOrdersRequest{Vm: h.vm.String()})
		if err != nil {
			return err
		}
		for _, o := range r.Orders {
			if o.Step == "pause" && o.Finding == f.Id && o.State == "waiting" && strings.Contains(o.Error, "libvirtd does not answer") && strings.Contains(o.Detail, "until") {
				return nil
			}
		}
		return fmt.Errorf("orders: %v", r.Orders)
	})
	h.await("respond/waiting")
	if _, err := h.api.Pause(t.Context(), &apipb.PauseRequest{Vm: "web", Reason: "by hand"}); connect.CodeOf(err) != connect.CodeUnavailable || !strings.Contains(err.Error(), "waits for libvirt") {
		t.Errorf("a pause by hand: %v", err)
	}
	h.eventually("the metrics", func() error { return h.metric(`outguard_events_received_total{class="bulk",vm="web"} 3`) })
	st, err := h.api.Status(t.Context(), &apipb.StatusRequest{})
	if err != nil || st.LibvirtError == "" {
		t.Errorf("status: %v, %v", st, err)
	}
	if err := a.Bye(t.Context(), "done"); err != nil {
		t.Error(err)
	}
	_ = stop()
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Errorf("a stop in order: %v", err)
	}
	if r := h.verify(); r.Next == 0 {
		t.Errorf("report: %+v", r)
	}
}

// A monitor that is killed goes on where its record ends: the session resumes,
// what was judged is not judged twice, and what came after is.
func TestDaemonKilled(t *testing.T) {
	h := newHost(t)
	h.beat("5s") // nobody is silent because the machine is slow
	h.start()
	a := prototest.NewAgent(nil)
	stop := h.connect(a)
	send(t, a, opened("/etc/passwd"))
	h.seal()
	send(t, a, opened("/first"))
	first := h.await("tsem/violation")

	_ = h.end(syscall.SIGKILL)
	_ = stop()
	h.start()
	stop = h.connect(a)
	h.eventually("the session resumes", func() error {
		if _, resumed := a.Welcome(); !resumed {
			return errors.New("not resumed")
		}
		return nil
	})
	send(t, a, opened("/second"))
	h.eventually("what came after", func() error {
		for _, f := range h.findings() {
			if strings.HasPrefix(f.Rule, "tsem/") && f.Path == "/second" {
				return nil
			}
		}
		return errors.New("not found")
	})
	var ids []string
	for _, f := range h.findings() {
		switch {
		case strings.HasPrefix(f.Rule, "tsem/") && f.Path == "/first":
			ids = append(ids, f.Id)
		case strings.HasPrefix(f.Rule, "session/"):
			t.Errorf("finding of a session that did nothing wrong: %v", f)
		}
	}
	if !slices.Equal(ids, []string{first.Id}) {
		t.Errorf("the first violation is on record as %q, want only %s", ids, first.Id)
	}
	h.missing(t)
	_ = stop()
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	h.verify()
}

// missing fails where a number is neither received nor declared lost.
func (h *host) missing(t testing.TB) {
	t.Helper()
	r, err := h.api.ListVMs(t.Context(), &apipb.ListVMsRequest{Vm: h.vm.String()})
	if err != nil || len(r.Vms) != 1 {
		t.Fatalf("vms: %v, %v", r, err)
	}
	for _, c := range r.Vms[0].Classes {
		if c.Missing != 0 {
			t.Errorf("class %s: %d missing", c.Class, c.Missing)
		}
	}
}

// A wrong key is refused and a finding that names the VM; the real agent is
// not harmed.
func TestDaemonWrongKey(t *testing.T) {
	h := newHost(t)
	h.start()
	since := api.FormatTime(time.Now())
	followed := make(chan string, 1) // while the VM has no record yet
	go func() {
		s, err := h.api.Findings(t.Context(), &apipb.FindingsRequest{Follow: true, Since: since})
		if err != nil || !s.Receive() {
			followed <- fmt.Sprint(err)
			return
		}
		followed <- s.Msg().Finding.Rule
	}()
	impostor := prototest.NewAgent(&prototest.AgentOptions{Key: [32]byte{1, 2, 3}})
	var refused *link.RejectError
	if err := impostor.Run(t.Context(), h.dial()); !errors.As(err, &refused) || refused.Code != vsockproto.RejectProof {
		t.Errorf("the impostor: %v", err)
	}
	if f := h.await(session.RuleProof); f.Uuid != h.vm.String() {
		t.Errorf("finding: %v", f)
	}
	if rule := <-followed; rule != session.RuleProof {
		t.Errorf("followed: %s", rule)
	}
	a := prototest.NewAgent(nil)
	stop := h.connect(a)
	send(t, a, opened("/etc/passwd"))
	_ = stop()
}

// A record that rotted on disk is set aside, and said; the VM's goes on in a
// new one.
func TestDaemonCorruptEvidence(t *testing.T) {
	h := newHost(t)
	h.start()
	a := prototest.NewAgent(nil)
	stop := h.connect(a)
	send(t, a, opened("/etc/passwd"))
	_ = stop()
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	stream := evidence.StreamDir(filepath.Join(h.root, "state", evidence.StoreDir), h.vm)
	segments, err := filepath.Glob(stream + "/*.seg")
	if err != nil || len(segments) == 0 {
		t.Fatalf("segments: %v, %v", segments, err)
	}
	text, err := os.ReadFile(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)/2] ^= 1
	h.write(segments[0], string(text))

	h.start()
	h.await("evidence/corrupt")
	aside, err := filepath.Glob(stream + "?*")
	if err != nil || len(aside) != 1 {
		t.Fatalf("set aside: %v, %v", aside, err)
	}
	if kept, err := os.ReadFile(filepath.Join(aside[0], filepath.Base(segments[0]))); err != nil || !bytes.HasPrefix(kept, text) {
		t.Errorf("what was set aside is not what was there: %v", err)
	}
	a = prototest.NewAgent(&prototest.AgentOptions{BootID: [16]byte{2}})
	stop = h.connect(a)
	send(t, a, opened("/etc/passwd"))
	_ = stop()
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	h.verify()
}

// A record that somebody took away is missed.
func TestDaemonMissingEvidence(t *testing.T) {
	h := newHost(t)
	h.start()
	a := prototest.NewAgent(nil)
	stop := h.connect(a)
	send(t, a, opened("/etc/passwd"))
	h.seal() // and a checkpoint with it
	_ = stop()
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	stream := evidence.StreamDir(filepath.Join(h.root, "state", evidence.StoreDir), h.vm)
	if err := os.RemoveAll(stream); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.await("evidence/missing")
}

// What is wrong with a file is said with its line, before anything starts.
func TestDaemonCheck(t *testing.T) {
	dir, err := build()
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ config, playbook, want string }{
		"configuration": {"state_dir: /a\nnonsense: 1\n", "", "[2:1]"},
		"playbook":      {"playbook: PLAYBOOK\n", "version: 1\nrules:\n  - name: a\n    steps: [explode]\n", "4:"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			h := &host{t: t}
			h.write(root+"/p.yaml", tc.playbook)
			h.write(root+"/c.yaml", strings.ReplaceAll(tc.config, "PLAYBOOK", root+"/p.yaml"))
			out, err := exec.Command(dir+"/outguardd", "--check", "--config", root+"/c.yaml").CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), tc.want) {
				t.Errorf("%v: %s; want exit 1 and %q", err, out, tc.want)
			}
		})
	}
}
