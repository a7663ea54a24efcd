package engine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/outguard/outguard/plugins/engine/enginepb"
	"github.com/outguard/outguard/vsockproto"
)

// ContractVersion is the version of this contract: of the gRPC service, the
// stream and what the interface means. The handshake refuses another.
const ContractVersion = 2

// BatchesFD and AnswersFD are the descriptors at which an engine process finds
// its end of the event stream: where it reads, and where it writes.
const (
	BatchesFD = 3
	AnswersFD = 4
)

// MaxCheckpoint bounds a checkpoint, in bytes.
const MaxCheckpoint = 256 << 20

// PluginName is the name under which the control service is served.
const PluginName = "engine"

// Handshake is what go-plugin compares before anything else.
var Handshake = plugin.HandshakeConfig{
	ProtocolVersion:  ContractVersion,
	MagicCookieKey:   "OUTGUARD_ENGINE",
	MagicCookieValue: "6d0f8c2e-judge-outside",
}

// Serve serves e in this process until the monitor ends it or closes the
// stream; it does not return before that. An engine's main is one call of it.
// First the process gives up files, network, capabilities and the start of
// other programs, so what an engine has to read it reads before it is served.
func Serve(e Engine) {
	if err := serve(e); err != nil {
		fmt.Fprintln(os.Stderr, "engine:", err)
		os.Exit(1)
	}
}

func serve(e Engine) error {
	s := newServer(e)
	if os.Getenv(Handshake.MagicCookieKey) == Handshake.MagicCookieValue {
		conn := inheritedStream()
		if err := limitMemory(os.Getenv(MemoryVariable)); err != nil {
			return err
		}
		if err := confine(os.Getenv(plugin.EnvUnixSocketDir)); err != nil {
			return err
		}
		go s.exitAfter(conn)
	}
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: Handshake,
		Plugins:         plugin.PluginSet{PluginName: &controlPlugin{server: s}},
		GRPCServer:      newGRPCServer,
		Logger:          hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: os.Stderr}),
	})
	return nil
}

func newGRPCServer(opts []grpc.ServerOption) *grpc.Server {
	const envelope = 1 << 10
	return grpc.NewServer(append(opts,
		grpc.MaxRecvMsgSize(MaxCheckpoint+envelope), grpc.MaxSendMsgSize(MaxCheckpoint+envelope))...)
}

// inheritedStream is the engine's end of the event stream. It blocks, and stays
// out of the runtime's poller, which would cost each batch a second system call,
// the waking of another thread, and a wake-up whenever the host has read an
// answer.
func inheritedStream() io.ReadWriter {
	return struct {
		io.Reader
		io.Writer
	}{os.NewFile(BatchesFD, "batches"), os.NewFile(AnswersFD, "answers")}
}

// server is one engine process: the stream's loop and the control service.
type server struct {
	enginepb.UnimplementedControlServer
	engine Engine

	// mu is held while a batch is judged and answered, so that a checkpoint
	// stands between batches and never covers one whose answer is not written.
	mu     sync.Mutex
	judged uint64 // number of the last batch

	batch    Batch  // under way
	out      []byte // answers to it
	conn     io.Writer
	number   uint64
	findings uint32
	dropped  uint32
	worst    Severity
	writeErr error
	report   func(Finding)
}

func newServer(e Engine) *server {
	s := &server{engine: e}
	s.report = s.add
	return s
}

// exitAfter judges until the stream ends. The process ends with it: without
// the host there is nothing to judge.
func (s *server) exitAfter(conn io.ReadWriter) {
	if err := s.stream(conn); err != nil {
		fmt.Fprintln(os.Stderr, "engine:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// stream judges what comes in on conn, batch after batch, until it ends.
func (s *server) stream(conn io.ReadWriter) error {
	r := bufio.NewReaderSize(conn, MessageHeader+MaxBatchMessage)
	s.conn = conn
	for {
		header, err := r.Peek(MessageHeader)
		if err == io.EOF && len(header) == 0 {
			return nil
		} else if err != nil {
			return fmt.Errorf("read event stream: %w", err)
		}
		kind, n, err := ParseMessageHeader(header, MaxBatchMessage)
		if err != nil {
			return fmt.Errorf("read event stream: %w", err)
		}
		if kind != KindBatch {
			return fmt.Errorf("read event stream: message kind %d: %w", kind, ErrInvalid)
		}
		message, err := r.Peek(MessageHeader + n) // the records stay where they were read
		if err != nil {
			return fmt.Errorf("read event stream: %w", err)
		}
		if err := s.judge(message[MessageHeader:]); err != nil {
			return err
		}
		if _, err := r.Discard(len(message)); err != nil {
			return fmt.Errorf("read event stream: %w", err)
		}
	}
}

func (s *server) judge(payload []byte) error {
	number, batch, err := ParseBatch(payload)
	s.batch = batch
	if err != nil {
		return fmt.Errorf("read event stream: %w", err)
	}
	// What the agent did because the host asked for it is nobody's behaviour.
	records, canaries := vsockproto.DropCanaries(batch.Records)
	s.batch.Records, s.batch.Count = records, batch.Count-canaries
	s.out, s.number, s.findings, s.dropped, s.worst = s.out[:0], number, 0, 0, 0
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.batch.Count > 0 || canaries == 0 {
		err = s.engine.Judge(&s.batch, s.report)
	}
	if err != nil {
		s.out = AppendBroken(s.out, number, err.Error())
		s.flush()
		return fmt.Errorf("judge batch %d: %w", number, err)
	}
	s.finish()
	s.judged = number
	return s.writeErr
}

// add takes a finding of the batch under way. What is beyond the limit is
// counted and becomes one finding more.
func (s *server) add(f Finding) {
	if s.findings == MaxBatchFindings-1 {
		s.dropped++
		s.worst = max(s.worst, f.Severity)
		return
	}
	s.findings++
	s.out = AppendFinding(s.out, s.number, &f)
	if len(s.out) > 256<<10 {
		s.flush()
	}
}

func (s *server) finish() {
	if s.dropped > 0 {
		s.findings++
		s.out = AppendFinding(s.out, s.number, &Finding{
			Rule: "engine/suppressed", Severity: s.worst,
			Reason: fmt.Sprintf("%d more findings of the same batch are not listed one by one.", s.dropped),
			Detail: map[string]string{"suppressed": fmt.Sprint(s.dropped)},
		})
	}
	s.out = AppendJudged(s.out, s.number, s.findings)
	s.flush()
}

func (s *server) flush() {
	if s.writeErr == nil {
		if _, err := s.conn.Write(s.out); err != nil {
			s.writeErr = fmt.Errorf("answer batch %d: %w", s.number, err)
		}
	}
	s.out = s.out[:0]
}

// The control service.

func (s *server) Describe(context.Context, *enginepb.DescribeRequest) (*enginepb.Description, error) {
	d := s.engine.Describe()
	return &enginepb.Description{Name: d.Name, Version: d.Version, Models: d.Models}, nil
}

func (s *server) Models(context.Context, *enginepb.ModelsRequest) (*enginepb.ModelsReply, error) {
	var reply enginepb.ModelsReply
	for _, m := range s.engine.Models() {
		reply.Models = append(reply.Models, modelToPB(m))
	}
	return &reply, nil
}

func (s *server) Learn(ctx context.Context, r *enginepb.VM) (*enginepb.Changed, error) {
	m, err := s.of(r)
	if err != nil {
		return nil, err
	}
	return s.change(ctx, r, m.Learn)
}

func (s *server) Seal(ctx context.Context, r *enginepb.VM) (*enginepb.Changed, error) {
	m, err := s.of(r)
	if err != nil {
		return nil, err
	}
	return s.change(ctx, r, m.Seal)
}

// sealer is what every engine can do to a model.
type sealer interface {
	Learn(ctx context.Context, vm uuid.UUID) (Model, error)
	Seal(ctx context.Context, vm uuid.UUID) (Model, error)
}

// of is the engine, as far as the workload goes that is meant.
func (s *server) of(r interface{ GetWorkload() string }) (sealer, error) {
	if r.GetWorkload() == "" {
		return s.engine, nil
	}
	d, is := s.engine.(Divider)
	if !is {
		return nil, status.Error(codes.Unimplemented, "this engine has one model for each VM, and none of a workload in it")
	}
	return d.Workload(r.GetWorkload()), nil
}

// modeller is the same where the models can be taken out.
func (s *server) modeller(r interface {
	GetVm() []byte
	GetWorkload() string
}) (Modelled, uuid.UUID, error) {
	vm, err := uuid.FromBytes(r.GetVm())
	if err != nil {
		return nil, vm, err
	}
	of, err := s.of(r)
	if err != nil {
		return nil, vm, err
	}
	m, is := of.(Modelled)
	if !is {
		return nil, vm, status.Error(codes.Unimplemented, "this engine's models cannot be taken out, put in or corrected")
	}
	return m, vm, nil
}

// Join implements the control service.
func (s *server) Join(ctx context.Context, r *enginepb.JoinRequest) (*enginepb.Changed, error) {
	d, is := s.engine.(Divider)
	if !is {
		return nil, status.Error(codes.Unimplemented, "this engine's models cannot be shared")
	}
	return s.change(ctx, &enginepb.VM{Vm: r.GetVm()}, func(ctx context.Context, vm uuid.UUID) (Model, error) {
		return d.Join(ctx, vm, r.GetWorkload(), r.GetGroup())
	})
}

func (s *server) Export(ctx context.Context, r *enginepb.VM) (*enginepb.ExportReply, error) {
	m, vm, err := s.modeller(r)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	file, err := m.Export(ctx, vm)
	if err != nil {
		return nil, err
	}
	if len(file) > MaxCheckpoint {
		return nil, fmt.Errorf("model file of %d bytes: %w", len(file), ErrTooLong)
	}
	return &enginepb.ExportReply{File: file}, nil
}

func (s *server) Import(ctx context.Context, r *enginepb.ImportRequest) (*enginepb.Changed, error) {
	m, _, err := s.modeller(r)
	if err != nil {
		return nil, err
	}
	return s.change(ctx, &enginepb.VM{Vm: r.GetVm()}, func(ctx context.Context, vm uuid.UUID) (Model, error) {
		return m.Import(ctx, vm, r.GetFile())
	})
}

func (s *server) Accept(ctx context.Context, r *enginepb.AcceptRequest) (*enginepb.Changed, error) {
	m, _, err := s.modeller(r)
	if err != nil {
		return nil, err
	}
	points, err := digests("point", r.GetPoints())
	if err != nil {
		return nil, err
	}
	return s.change(ctx, &enginepb.VM{Vm: r.GetVm()}, func(ctx context.Context, vm uuid.UUID) (Model, error) {
		return m.Accept(ctx, vm, points)
	})
}

func (s *server) Set(ctx context.Context, r *enginepb.SetRequest) (*enginepb.Changed, error) {
	m, _, err := s.modeller(r)
	if err != nil {
		return nil, err
	}
	var set Settings
	for to, b := range map[**[PointSize]byte][]byte{&set.Base: r.GetBase(), &set.Aggregate: r.GetAggregate()} {
		if len(b) == 0 {
			continue
		}
		v, err := digests("value", [][]byte{b})
		if err != nil {
			return nil, err
		}
		*to = &v[0]
	}
	if set.Pseudonyms, err = digests("pseudonym", r.GetPseudonyms()); err != nil {
		return nil, err
	}
	return s.change(ctx, &enginepb.VM{Vm: r.GetVm()}, func(ctx context.Context, vm uuid.UUID) (Model, error) {
		return m.Set(ctx, vm, set)
	})
}

// digests reads values of 32 bytes each.
func digests(what string, all [][]byte) ([][PointSize]byte, error) {
	out := make([][PointSize]byte, len(all))
	for i, b := range all {
		if len(b) != PointSize {
			return nil, fmt.Errorf("%s of %d bytes: %w", what, len(b), ErrInvalid)
		}
		copy(out[i][:], b)
	}
	return out, nil
}

func (s *server) change(ctx context.Context, r *enginepb.VM, do func(context.Context, uuid.UUID) (Model, error)) (*enginepb.Changed, error) {
	vm, err := uuid.FromBytes(r.GetVm())
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := do(ctx, vm)
	if err != nil {
		return nil, err
	}
	c, err := s.checkpoint(vm)
	if err != nil {
		return nil, err
	}
	return &enginepb.Changed{Model: modelToPB(m), Checkpoint: c}, nil
}

func (s *server) Checkpoint(_ context.Context, r *enginepb.VM) (*enginepb.CheckpointReply, error) {
	vm, err := uuid.FromBytes(r.GetVm())
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.checkpoint(vm)
}

// checkpoint is called with mu held.
func (s *server) checkpoint(vm uuid.UUID) (*enginepb.CheckpointReply, error) {
	b, err := s.engine.Checkpoint(vm)
	if err != nil {
		return nil, err
	}
	if len(b) > MaxCheckpoint {
		return nil, fmt.Errorf("checkpoint of %d bytes: %w", len(b), ErrTooLong)
	}
	return &enginepb.CheckpointReply{Checkpoint: b, Judged: s.judged}, nil
}

func (s *server) Restore(_ context.Context, r *enginepb.RestoreRequest) (*enginepb.RestoreReply, error) {
	vm, err := uuid.FromBytes(r.GetVm())
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.engine.Restore(vm, r.GetCheckpoint()); err != nil {
		return nil, err
	}
	return &enginepb.RestoreReply{}, nil
}

func modelToPB(m Model) *enginepb.Model {
	p := &enginepb.Model{
		Vm: m.VM[:], Mapping: m.Mapping, Sealed: m.Sealed, Points: m.Points, Events: m.Events,
		Violations: m.Violations, Measurement: m.Measurement, State: m.State,
		Aggregate: m.Aggregate, Version: m.Version, Forensics: m.Forensics, SinceNew: m.SinceNew, Quiet: m.Quiet,
		Workload: m.Workload, Group: m.Group,
	}
	for _, h := range m.Hours {
		p.Hours = append(p.Hours, &enginepb.Hour{Start: h.Start.Unix(), Events: h.Events, New: h.New})
	}
	if !m.LastNew.IsZero() {
		p.LastNewNs = m.LastNew.UnixNano()
	}
	return p
}

// controlPlugin is the engine's end of go-plugin.
type controlPlugin struct {
	plugin.NetRPCUnsupportedPlugin
	server *server
}

func (p *controlPlugin) GRPCServer(_ *plugin.GRPCBroker, g *grpc.Server) error {
	enginepb.RegisterControlServer(g, p.server)
	return nil
}

func (p *controlPlugin) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.ErrUnsupported
}
