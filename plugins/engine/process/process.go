// Package process starts one engine process and speaks to it: the host's side
// of the contract in plugins/engine. It restarts nothing and waits for nobody;
// host/engines does.
//
// What comes from the process is checked against the contract's limits. An
// engine that breaks them has ended, and Err says how.
package process

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/plugins/engine/enginepb"
)

// Config says which binary to start, and as whom.
type Config struct {
	Path   string   // of the binary
	Args   []string // after its name
	SHA256 string   // hex; "": any content
	UID    *uint32  // nil: this process's own; needs CAP_SETUID otherwise
	GID    *uint32  // nil: as UID
	Memory int64    // bytes that it may have; 0: no limit
}

// Options are the rest; nil and zero mean the defaults.
type Options struct {
	Logger       *slog.Logger  // default slog.Default
	SocketDir    string        // where the directory of the control socket is made; default os.TempDir
	StartTimeout time.Duration // default 10 s
	CallTimeout  time.Duration // of one control call whose context has no deadline; default 30 s
}

// Errors to branch on.
var (
	ErrChecksum = errors.New("checksum does not match")
	ErrContract = errors.New("not an engine of this contract version")
	ErrProtocol = errors.New("engine broke the contract")
)

// Process is one running engine.
type Process struct {
	client      *plugin.Client
	cmd         *exec.Cmd
	control     enginepb.ControlClient
	stream      *duplex
	dir         string
	log         *slog.Logger
	description engine.Description
	callTimeout time.Duration

	sendMu sync.Mutex // guards sent; held while writing
	sent   uint64

	closeOnce sync.Once
}

// Start starts the binary, makes the handshake and asks the engine what it
// is. The caller must Close the process.
func Start(ctx context.Context, cfg Config, opts *Options) (*Process, error) {
	if opts == nil {
		opts = &Options{}
	}
	secure, err := check(cfg)
	if err != nil {
		return nil, fmt.Errorf("start engine %s: %w", cfg.Path, err)
	}
	p := &Process{
		callTimeout: cmpOr(opts.CallTimeout, 30*time.Second),
		log:         cmpOr(opts.Logger, slog.Default()).With("engine", filepath.Base(cfg.Path)),
	}
	if err := p.start(ctx, cfg, opts, secure); err != nil {
		p.Close()
		return nil, fmt.Errorf("start engine %s: %w", cfg.Path, err)
	}
	return p, nil
}

func cmpOr[T comparable](v, or T) T {
	var zero T
	if v == zero {
		return or
	}
	return v
}

// check refuses a binary that is not there or not the one that is pinned, in
// words that say which.
func check(cfg Config) (*plugin.SecureConfig, error) {
	st, err := os.Stat(cfg.Path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
		return nil, fmt.Errorf("%s is not an executable file: %w", cfg.Path, os.ErrPermission)
	}
	if cfg.SHA256 == "" {
		return nil, nil
	}
	want, err := hex.DecodeString(cfg.SHA256)
	if err != nil || len(want) != sha256.Size {
		return nil, fmt.Errorf("checksum %q is not 64 hex digits: %w", cfg.SHA256, ErrChecksum)
	}
	return &plugin.SecureConfig{Checksum: want, Hash: sha256.New()}, nil
}

func (p *Process) start(ctx context.Context, cfg Config, opts *Options, secure *plugin.SecureConfig) error {
	ours, theirs, err := newDuplex()
	if err != nil {
		return fmt.Errorf("event stream: %w", err)
	}
	p.stream = ours
	defer theirs[0].Close()
	defer theirs[1].Close()
	if err := p.makeDir(cfg, opts.SocketDir); err != nil {
		return err
	}
	p.cmd = exec.Command(cfg.Path, cfg.Args...)
	p.cmd.Env = []string{plugin.EnvUnixSocketDir + "=" + p.dir, "GOTRACEBACK=single"}
	if cfg.Memory > 0 {
		p.cmd.Env = append(p.cmd.Env, engine.MemoryVariable+"="+strconv.FormatInt(cfg.Memory, 10))
	}
	p.cmd.Dir = "/"
	p.cmd.ExtraFiles = theirs[:] // engine.BatchesFD and AnswersFD
	p.cmd.SysProcAttr = attributes(cfg)
	stderr := &lineLogger{log: p.log}
	p.client = plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:  engine.Handshake,
		Plugins:          plugin.PluginSet{engine.PluginName: &clientPlugin{}},
		Cmd:              p.cmd,
		SecureConfig:     secure,
		AutoMTLS:         true,
		SkipHostEnv:      true,
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		StartTimeout:     cmpOr(opts.StartTimeout, 10*time.Second),
		Stderr:           stderr,
		Logger:           hclog.NewNullLogger(),
		GRPCDialOptions: []grpc.DialOption{grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(engine.MaxCheckpoint+1<<10), grpc.MaxCallSendMsgSize(engine.MaxCheckpoint+1<<10))},
	})
	rpc, err := withoutAmbient(p.client.Client)
	if err != nil {
		return explain(err, stderr)
	}
	raw, err := rpc.Dispense(engine.PluginName)
	if err != nil {
		return err
	}
	p.control = raw.(enginepb.ControlClient)
	return p.describe(ctx)
}

// withoutAmbient starts a process that inherits no capability of this one's:
// changing from one plain user to another keeps them. They are a thread's, and
// the thread that gives them up ends with its goroutine.
func withoutAmbient(start func() (plugin.ClientProtocol, error)) (rpc plugin.ClientProtocol, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good
		if err = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
			err = fmt.Errorf("give up ambient capabilities: %w", err)
			return
		}
		rpc, err = start()
	}()
	<-done
	return rpc, err
}

// explain turns go-plugin's words into an error to branch on.
func explain(err error, stderr *lineLogger) error {
	if errors.Is(err, plugin.ErrChecksumsDoNotMatch) {
		return ErrChecksum
	}
	text, _, _ := strings.Cut(err.Error(), "\n")
	if said := stderr.first(); said != "" {
		text += " (it said: " + said + ")"
	}
	for _, sign := range [...]string{"ncompatible", "Unrecognized remote plugin message", "plugin exited before", "unsupported plugin protocol"} {
		if strings.Contains(text, sign) {
			return fmt.Errorf("%w %d: %s", ErrContract, engine.ContractVersion, text)
		}
	}
	return errors.New(text)
}

// makeDir makes the directory of the control socket: this process's, open to
// the engine's group alone where the engine runs as somebody else.
func (p *Process) makeDir(cfg Config, parent string) error {
	dir, err := os.MkdirTemp(parent, "outguard-engine-")
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	p.dir = dir
	if cfg.UID == nil {
		return nil
	}
	if err := openTo(dir, int(gid(cfg))); err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	return nil
}

// openTo lets a group make its socket in dir. Without CAP_CHOWN everyone can,
// in a directory that cannot be listed and where nobody can remove another's:
// both ends prove themselves by certificate anyway.
func openTo(dir string, group int) error {
	err := os.Chown(dir, -1, group)
	if errors.Is(err, os.ErrPermission) {
		return os.Chmod(dir, 0o733|os.ModeSticky)
	}
	if err != nil {
		return err
	}
	return os.Chmod(dir, 0o770)
}

func gid(cfg Config) uint32 {
	if cfg.GID != nil {
		return *cfg.GID
	}
	return *cfg.UID
}

func attributes(cfg Config) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setpgid: true} // an interrupt at the terminal is the monitor's to handle
	if cfg.UID != nil {
		a.Credential = &syscall.Credential{Uid: *cfg.UID, Gid: gid(cfg), Groups: []uint32{}}
	}
	return a
}

func (p *Process) describe(ctx context.Context) error {
	ctx, cancel := p.deadline(ctx)
	defer cancel()
	d, err := p.control.Describe(ctx, &enginepb.DescribeRequest{})
	if err != nil {
		return fmt.Errorf("describe: %w", err)
	}
	p.description = engine.Description{Name: d.GetName(), Version: d.GetVersion(), Models: d.GetModels()}
	if p.description.Name == "" || len(p.description.Name) > 64 || len(p.description.Version) > 256 {
		return fmt.Errorf("describe: name %.80q: %w", p.description.Name, ErrProtocol)
	}
	return nil
}

func (p *Process) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, has := ctx.Deadline(); has {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, p.callTimeout)
}

// Description is what the engine said of itself at the start.
func (p *Process) Description() engine.Description { return p.description }

// PID is the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Send writes a batch on the stream and returns its number: 1, 2, 3 … It
// blocks while the socket is full, until deadline (zero: without end). After
// an error the process is of no more use.
func (p *Process) Send(b *engine.Batch, deadline time.Time) (uint64, error) {
	message, err := engine.AppendBatch(nil, 0, b)
	if err != nil {
		return 0, fmt.Errorf("send batch: %w", err)
	}
	return p.SendMessage(message, deadline)
}

// SendMessage is Send for what engine.AppendBatch made; it sets the number in
// it.
func (p *Process) SendMessage(message []byte, deadline time.Time) (uint64, error) {
	p.sendMu.Lock()
	defer p.sendMu.Unlock()
	engine.NumberBatch(message, p.sent+1)
	if err := p.stream.write(message, deadline); err != nil {
		return 0, fmt.Errorf("send batch: %w", err)
	}
	p.sent++
	return p.sent, nil
}

// Kill ends the process at once, whatever it does. Where this process may not
// signal that of another user (CAP_KILL), its stream is closed instead, at
// which an engine ends unless it hangs.
func (p *Process) Kill() {
	if p.cmd == nil || p.cmd.Process == nil {
		return
	}
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.log.Warn("engine process cannot be killed", "pid", p.cmd.Process.Pid, "err", err)
		p.stream.shut()
	}
}

// closeTimeout is how long Close waits for a process that cannot be killed.
const closeTimeout = 10 * time.Second

// Close ends the process and returns when it has ended. Send and Receive fail
// from then on.
func (p *Process) Close() error {
	p.closeOnce.Do(func() {
		if p.stream != nil {
			p.stream.Close() // an engine ends with its stream
		}
		p.Kill()
		if p.client != nil {
			p.reap()
		}
		if p.dir != "" {
			os.RemoveAll(p.dir)
		}
	})
	return nil
}

func (p *Process) reap() {
	ended := make(chan struct{})
	go func() { defer close(ended); p.client.Kill() }()
	select {
	case <-ended:
	case <-time.After(closeTimeout):
		p.log.Error("engine process does not end", "path", p.cmd.Path)
	}
}

// clientPlugin is the host's end of go-plugin.
type clientPlugin struct{ plugin.NetRPCUnsupportedPlugin }

func (*clientPlugin) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error { return errors.ErrUnsupported }

func (*clientPlugin) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return enginepb.NewControlClient(c), nil
}
