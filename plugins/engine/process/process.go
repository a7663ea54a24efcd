// Package process starts one engine process and speaks to it: the host's side
// of the contract in plugins/engine. It restarts nothing and waits for nobody;
// host/engines does.
//
// What comes from the process is checked against the contract's limits. An
// engine that breaks them has ended, and Err says how.
package process

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"crypto/sha256"

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

// Verdict is the answer to one batch.
type Verdict struct {
	Number   uint64           // of the batch; all before it are answered too
	Findings []engine.Finding // nil where there was nothing to say; the receiver's to keep
}

// Process is one running engine.
type Process struct {
	client      *plugin.Client
	cmd         *exec.Cmd
	control     enginepb.ControlClient
	stream      net.Conn
	dir         string
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
	p := &Process{callTimeout: cmpOr(opts.CallTimeout, 30*time.Second)}
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
	logger := cmpOr(opts.Logger, slog.Default()).With("engine", filepath.Base(cfg.Path))
	theirs, err := p.socketPair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	if err := p.makeDir(cfg, opts.SocketDir); err != nil {
		return err
	}
	p.cmd = exec.Command(cfg.Path, cfg.Args...)
	p.cmd.Env = []string{plugin.EnvUnixSocketDir + "=" + p.dir, "GOTRACEBACK=single"}
	p.cmd.Dir = "/"
	p.cmd.ExtraFiles = []*os.File{theirs}
	p.cmd.SysProcAttr = attributes(cfg)
	stderr := &lineLogger{log: logger}
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
	rpc, err := p.client.Client()
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

// explain turns go-plugin's words into an error to branch on.
func explain(err error, stderr *lineLogger) error {
	text := err.Error()
	if said := stderr.first(); said != "" {
		text += " (it said: " + said + ")"
	}
	switch {
	case errors.Is(err, plugin.ErrChecksumsDoNotMatch):
		return ErrChecksum
	case strings.Contains(text, "ncompatible"), strings.Contains(text, "Unrecognized remote plugin message"),
		strings.Contains(text, "plugin exited before"), strings.Contains(text, "unsupported plugin protocol"):
		text, _, _ = strings.Cut(text, "\n")
		return fmt.Errorf("%w %d: %s", ErrContract, engine.ContractVersion, text)
	}
	return errors.New(text)
}

// socketPair makes the event stream; the returned end is the engine's.
func (p *Process) socketPair() (*os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("event stream: %w", err)
	}
	for _, fd := range fds {
		// Room for a window of batches; the kernel gives what it allows.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "event stream"), os.NewFile(uintptr(fds[1]), "event stream")
	defer ours.Close()
	if p.stream, err = net.FileConn(ours); err != nil {
		theirs.Close()
		return nil, fmt.Errorf("event stream: %w", err)
	}
	return theirs, nil
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
	if err := os.Chown(dir, -1, int(gid(cfg))); err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	if err := os.Chmod(dir, 0o770); err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	return nil
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
	if err := p.stream.SetWriteDeadline(deadline); err != nil {
		return 0, fmt.Errorf("send batch: %w", err)
	}
	if _, err := p.stream.Write(message); err != nil {
		return 0, fmt.Errorf("send batch: %w", err)
	}
	p.sent++
	return p.sent, nil
}

// Receive reads answers and hands each batch's verdict to got, in the order of
// the batches, until the stream ends or the engine breaks the contract. It
// never returns nil: io.EOF is the engine's orderly end. next is called from
// this goroutine alone.
func (p *Process) Receive(got func(Verdict)) error {
	r := receiver{r: bufio.NewReaderSize(p.stream, 64<<10), buf: make([]byte, engine.MaxAnswer)}
	for {
		v, err := r.verdict()
		if err != nil {
			return err
		}
		got(v)
	}
}

// receiver reads verdicts. The watermark must go up by one, and the findings
// before it be of that batch and within the limits.
type receiver struct {
	r    *bufio.Reader
	buf  []byte
	last uint64
}

func (r *receiver) verdict() (Verdict, error) {
	v := Verdict{Number: r.last + 1}
	for {
		kind, payload, err := r.message()
		if err != nil {
			return Verdict{}, err
		}
		switch kind {
		case engine.KindFinding:
			number, f, err := engine.ParseFinding(payload)
			if err != nil {
				return Verdict{}, fmt.Errorf("%w: %w", ErrProtocol, err)
			}
			if number != v.Number || len(v.Findings) == engine.MaxBatchFindings {
				return Verdict{}, fmt.Errorf("%w: finding %d of batch %d in batch %d", ErrProtocol, len(v.Findings)+1, number, v.Number)
			}
			v.Findings = append(v.Findings, f)
		case engine.KindJudged:
			number, findings, err := engine.ParseJudged(payload)
			if err != nil {
				return Verdict{}, fmt.Errorf("%w: %w", ErrProtocol, err)
			}
			if number != v.Number || int(findings) != len(v.Findings) {
				return Verdict{}, fmt.Errorf("%w: judged %d with %d findings, want %d with %d", ErrProtocol, number, findings, v.Number, len(v.Findings))
			}
			r.last = number
			return v, nil
		case engine.KindBroken:
			_, reason, err := engine.ParseBroken(payload)
			if err != nil {
				return Verdict{}, fmt.Errorf("%w: %w", ErrProtocol, err)
			}
			return Verdict{}, fmt.Errorf("engine gave up: %q", reason)
		default:
			return Verdict{}, fmt.Errorf("%w: message kind %d", ErrProtocol, kind)
		}
	}
}

func (r *receiver) message() (engine.Kind, []byte, error) {
	header := r.buf[:engine.MessageHeader]
	if _, err := io.ReadFull(r.r, header); err != nil {
		return 0, nil, err // io.EOF between messages is the orderly end
	}
	kind, n, err := engine.ParseMessageHeader(header, engine.MaxAnswer)
	if err != nil {
		return 0, nil, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if _, err := io.ReadFull(r.r, r.buf[:n]); err != nil {
		return 0, nil, fmt.Errorf("read answer: %w", io.ErrUnexpectedEOF)
	}
	return kind, r.buf[:n], nil
}

// Models lists the engine's models.
func (p *Process) Models(ctx context.Context) ([]engine.Model, error) {
	ctx, cancel := p.deadline(ctx)
	defer cancel()
	reply, err := p.control.Models(ctx, &enginepb.ModelsRequest{})
	if err != nil {
		return nil, fmt.Errorf("models: %w", err)
	}
	models := make([]engine.Model, 0, len(reply.GetModels()))
	for _, m := range reply.GetModels() {
		model, err := modelFromPB(m)
		if err != nil {
			return nil, fmt.Errorf("models: %w", err)
		}
		models = append(models, model)
	}
	return models, nil
}

// Checkpoint is an engine's state for one VM, and the number of the last batch
// that it covers.
type Checkpoint struct {
	Data   []byte
	Judged uint64
}

// Learn opens the VM's model; the checkpoint holds the change.
func (p *Process) Learn(ctx context.Context, vm uuid.UUID) (engine.Model, Checkpoint, error) {
	ctx, cancel := p.deadline(ctx)
	defer cancel()
	c, err := p.control.Learn(ctx, &enginepb.VM{Vm: vm[:]})
	return changed("learn", c, err)
}

// Seal closes the VM's model; the checkpoint holds the change.
func (p *Process) Seal(ctx context.Context, vm uuid.UUID) (engine.Model, Checkpoint, error) {
	ctx, cancel := p.deadline(ctx)
	defer cancel()
	c, err := p.control.Seal(ctx, &enginepb.VM{Vm: vm[:]})
	return changed("seal", c, err)
}

func changed(what string, c *enginepb.Changed, err error) (engine.Model, Checkpoint, error) {
	if err != nil {
		return engine.Model{}, Checkpoint{}, fmt.Errorf("%s: %w", what, err)
	}
	m, err := modelFromPB(c.GetModel())
	if err != nil {
		return engine.Model{}, Checkpoint{}, fmt.Errorf("%s: %w", what, err)
	}
	return m, checkpointFromPB(c.GetCheckpoint()), nil
}

// Checkpoint asks for the VM's state.
func (p *Process) Checkpoint(ctx context.Context, vm uuid.UUID) (Checkpoint, error) {
	ctx, cancel := p.deadline(ctx)
	defer cancel()
	c, err := p.control.Checkpoint(ctx, &enginepb.VM{Vm: vm[:]})
	if err != nil {
		return Checkpoint{}, fmt.Errorf("checkpoint: %w", err)
	}
	return checkpointFromPB(c), nil
}

// Restore gives the VM's state back.
func (p *Process) Restore(ctx context.Context, vm uuid.UUID, data []byte) error {
	ctx, cancel := p.deadline(ctx)
	defer cancel()
	if _, err := p.control.Restore(ctx, &enginepb.RestoreRequest{Vm: vm[:], Checkpoint: data}); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	return nil
}

func checkpointFromPB(c *enginepb.CheckpointReply) Checkpoint {
	return Checkpoint{Data: c.GetCheckpoint(), Judged: c.GetJudged()}
}

func modelFromPB(m *enginepb.Model) (engine.Model, error) {
	vm, err := uuid.FromBytes(m.GetVm())
	if err != nil {
		return engine.Model{}, fmt.Errorf("model: %w: %w", ErrProtocol, err)
	}
	out := engine.Model{
		VM: vm, Mapping: m.GetMapping(), Sealed: m.GetSealed(), Points: m.GetPoints(), Events: m.GetEvents(),
		Violations: m.GetViolations(), Measurement: m.GetMeasurement(), State: m.GetState(),
	}
	if ns := m.GetLastNewNs(); ns != 0 {
		out.LastNew = time.Unix(0, ns)
	}
	return out, nil
}

// Kill ends the process at once, whatever it does.
func (p *Process) Kill() {
	if p.cmd != nil && p.cmd.Process != nil {
		_ = p.cmd.Process.Kill() // fails only where it has ended already
	}
}

// Close ends the process and returns when it has ended. Send and Receive fail
// from then on.
func (p *Process) Close() error {
	p.closeOnce.Do(func() {
		if p.stream != nil {
			p.stream.Close() // an engine ends with its stream
		}
		p.Kill()
		if p.client != nil {
			p.client.Kill()
		}
		if p.dir != "" {
			os.RemoveAll(p.dir)
		}
	})
	return nil
}

// clientPlugin is the host's end of go-plugin.
type clientPlugin struct{ plugin.NetRPCUnsupportedPlugin }

func (*clientPlugin) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error { return errors.ErrUnsupported }

func (*clientPlugin) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return enginepb.NewControlClient(c), nil
}
