package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"filippo.io/age"
	"github.com/google/uuid"

	"github.com/outguard/outguard/host/bolt"
	"github.com/outguard/outguard/host/bundle"
	"github.com/outguard/outguard/host/domain"
	"github.com/outguard/outguard/host/engines"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/host/metrics"
	"github.com/outguard/outguard/host/pipeline"
	"github.com/outguard/outguard/host/respond"
	"github.com/outguard/outguard/host/session"
	"github.com/outguard/outguard/plugins/engine"
)

// DefaultPlaybookPath is read where the configuration names no playbook.
const DefaultPlaybookPath = "/etc/outguard/playbook.yaml"

// Monitor is one running monitor.
type Monitor struct {
	cfg     *Config
	log     *slog.Logger
	version string
	started time.Time

	store     *evidence.Store // and the host's key
	state     *state
	journal   *respond.Journal
	libvirt   *domain.Client
	domains   *domains
	stale     chan struct{} // libvirt's list is to be read again
	lives     *lives
	standing  *standing
	metrics   *metrics.Metrics
	judge     *judge
	engines   []*engines.Supervisor
	pipeline  *pipeline.Pipeline
	sessions  *session.Manager
	captures  *capturer
	shelf     *shelf
	responder *respond.Responder
	doors     *doors

	tell       []engine.Finding // of opening the files
	owed       owed             // what has no room on the record
	hangups    <-chan os.Signal // have the playbook read anew; nil: nobody does
	settled    atomic.Bool      // domains have their names, and engines what they had missed: records may be given up
	loose      sync.WaitGroup   // findings that could not be told where they were made
	enrolled   *domain.Enrolled
	enrolError string // what is wrong with the enrolments, as last logged

	recipients []age.Recipient // of captures, where they are archives; nil: everybody

	observe func(b *engine.Batch, verdict time.Time) // each verdict; benchmarks set it
	watch   func(*session.Parts)                     // a watch around what sessions stand on; benchmarks set it
}

// New makes a monitor; it opens and starts nothing.
func New(cfg *Config, version string, log *slog.Logger) *Monitor {
	return &Monitor{cfg: cfg, version: version, log: log, stale: make(chan struct{}, 1)}
}

// Check validates what Run would read besides the configuration.
func Check(cfg *Config) error {
	_, err := loadPlaybook(cfg)
	_, rerr := cfg.Bundles.recipients()
	return errors.Join(err, rerr)
}

func (m *Monitor) bundleDir() string { return filepath.Join(m.cfg.StateDir, evidence.BundlesDir) }

func (m *Monitor) enrolDir() string { return filepath.Join(m.cfg.StateDir, "enroll") }

// APISocket is where the monitor of this configuration answers.
func (c *Config) APISocket() string { return filepath.Join(c.RunDir, "api.sock") }

// Run opens everything, starts everything, and returns when ctx has ended and
// all of it has stopped, the last received first: what was received is judged,
// what was ordered has its result.
func (m *Monitor) Run(ctx context.Context) (err error) {
	m.started = time.Now()
	if err := m.open(); err != nil {
		return errors.Join(err, m.close())
	}
	defer func() { err = errors.Join(err, m.close()) }()
	m.leftovers()
	if err := m.wire(); err != nil {
		return err
	}
	err = m.stages().run(ctx, m.log)
	m.loose.Wait()
	return err
}

// checkpoints is where engines' models are kept.
func (m *Monitor) checkpoints() engines.Dir {
	return engines.Dir(filepath.Join(m.cfg.StateDir, "models"))
}

// open takes hold of what is on disk.
func (m *Monitor) open() error {
	playbook, err := loadPlaybook(m.cfg)
	if err != nil {
		return err
	}
	if m.recipients, err = m.cfg.Bundles.recipients(); err != nil {
		return err
	}
	m.judge = &judge{m: m, playbook: playbook, undone: map[uuid.UUID]time.Time{}, known: map[place]*earlier{}, ordered: map[string]bool{}, kept: map[keptID]bool{}, orders: map[uuid.UUID]respond.Entry{}}
	for _, dir := range []struct {
		path string
		mode os.FileMode
	}{
		{m.cfg.StateDir, 0o711}, // QEMU's user passes through to its own files
		{m.bundleDir(), 0o711},
		{m.cfg.RunDir, 0o755},
	} {
		if err := makeDir(dir.path, dir.mode); err != nil {
			return err
		}
	}
	key, err := evidence.LoadOrCreateKey(m.cfg.StateDir, hostname())
	if err != nil {
		return err
	}
	m.store, err = evidence.Open(filepath.Join(m.cfg.StateDir, evidence.StoreDir), key, &evidence.Options{
		SegmentSize: int64(m.cfg.Evidence.Segment), Quota: int64(m.cfg.Evidence.Quota),
		Reserve: int64(m.cfg.Evidence.Reserve), Room: m.room,
		SyncInterval: m.cfg.Evidence.Sync, SetAside: m.setAside, Keys: recordKeys(), Retain: m.retaining(), Log: m.log,
	})
	if err != nil {
		return err
	}
	if m.state, err = openState(filepath.Join(m.cfg.StateDir, "state.db")); err != nil {
		return err
	}
	if m.journal, err = respond.OpenJournal(filepath.Join(m.cfg.StateDir, "journal.db")); err != nil {
		return err
	}
	if torn := m.journal.Torn(); torn != nil {
		m.log.Warn("the journal's log: orders that were being given when the monitor ended are not", "why", torn)
	}
	for _, cut := range []*bolt.Cut{m.journal.Cut(), m.state.cut} {
		m.cut(cut)
	}
	return nil
}

// cut reports a file of the host's own that could not be trusted: the host's
// record has the finding, once the stages run.
func (m *Monitor) cut(c *bolt.Cut) {
	if c == nil {
		return
	}
	f := engine.Finding{
		Rule: "monitor/corrupt", Severity: engine.Severest, Technique: "T1070",
		Reason: fmt.Sprintf("%s is not what was written; it was set aside and a new one begun.", filepath.Base(c.Path)),
		Detail: map[string]string{"error": c.Reason, "file": c.Aside, "bytes": fmt.Sprint(c.Bytes)},
	}
	m.log.Error("a file was set aside", "file", c.Aside, "error", c.Reason)
	m.tell = append(m.tell, f)
}

// setAside reports a VM's record that could not be gone on with. The store has
// begun a new one; it is in the middle of that, so the finding comes after.
func (m *Monitor) setAside(vm uuid.UUID, err error, dir string) {
	f := engine.Finding{
		VM: vm, Rule: "evidence/corrupt", Severity: engine.Severest, Technique: "T1070",
		Reason: "The VM's record is not what was written; it was set aside and a new one begun.",
		Detail: map[string]string{"error": err.Error(), "dir": dir},
	}
	m.loose.Go(func() { m.judge.found(f) })
}

// leftovers tells of bundles that a crash left half written, and whose order does
// not see to them. They may hold the only copy of a capture: nobody removes them
// unasked.
func (m *Monitor) leftovers() {
	dirs, err := bundle.Partial(m.bundleDir(), "")
	more, err2 := filepath.Glob(filepath.Join(m.bundleDir(), capturing+"*"))
	if err := errors.Join(err, err2); err != nil {
		m.log.Warn("look for unfinished bundles", "error", err)
	}
	for _, dir := range append(dirs, more...) {
		if m.unpacked(dir) {
			continue // its order says what comes of it
		}
		m.log.Warn("an unfinished capture; remove it if it is not needed", "dir", dir)
	}
}

// makeDir makes a directory of exactly that mode. One that was there before
// keeps what its owner gave it.
func makeDir(path string, mode os.FileMode) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := os.MkdirAll(path, mode); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

func hostname() string {
	h, err := os.Hostname()
	if err != nil || h == "" {
		return "host"
	}
	return h
}

func (m *Monitor) close() error {
	var errs []error
	if m.libvirt != nil {
		errs = append(errs, m.libvirt.Close())
	}
	if m.journal != nil {
		errs = append(errs, m.journal.Close())
	}
	if m.state != nil {
		errs = append(errs, m.state.Close())
	}
	if m.store != nil {
		errs = append(errs, m.store.Close())
	}
	return errors.Join(errs...)
}

// wire makes the parts and joins them.
func (m *Monitor) wire() error {
	m.metrics = metrics.New(&metrics.Options{Version: m.version})
	m.domains, m.enrolled = newDomains(), domain.NewEnrolled(m.enrolDir())
	m.libvirt = domain.New(&domain.Options{Socket: m.cfg.Libvirt, Log: m.log})
	m.captures = newCapturer(m)
	m.shelf = newShelf(m.bundleDir(), int64(m.cfg.Captures.Budget), m.store.Key, m.judge.found)
	if err := m.shelf.sweep(); err != nil {
		m.log.Warn("what is left of captures that were given up or packed", "error", err)
	}
	m.lives, m.standing = newLives(), newStanding(m)
	m.responder = respond.New(m.journal, hands{m.libvirt, m.lives}, m.captures, m, &respond.Options{
		Away: m.cfg.Orders.Wait, Alerts: newAlerter(m), Guest: inGuest{m}, Held: m.judge.held, Observe: m.judge.settled, Log: m.log,
	})
	m.pipeline = pipeline.New()
	for _, e := range m.cfg.Engines {
		if err := m.addEngine(e); err != nil {
			return fmt.Errorf("engine %s: %w", e.Name, err)
		}
	}
	parts := session.Parts{
		Keys: keys{m.domains}, Recorder: recorder{m}, Replayer: recorder{m}, Sink: sink{m},
		Findings: m.judge.found, Domains: domainStates{m.domains}, Examiner: examiner{m}, Store: sessionStore{m.state, m.store}, Log: m.log,
	}
	if m.watch != nil {
		m.watch(&parts)
	}
	m.sessions = session.New(parts, &session.Options{
		Heartbeat: m.cfg.Session.Heartbeat, Credit: int(m.cfg.Session.Credit), Grace: m.cfg.Session.Grace,
		Flood: m.cfg.Session.Flood, Canary: m.cfg.Session.Canary, PolicyOf: m.policyOf, FiltersOf: m.filtersOf,
	})
	m.doors = newDoors(m)
	return nil
}

func (m *Monitor) addEngine(e Engine) error {
	uid, gid, err := engineUser(e.User)
	if err != nil && e.User != "" {
		return err
	}
	if err != nil {
		m.log.Warn("engine runs under the monitor's own user", "engine", e.Name, "why", err)
	}
	counts := m.metrics.Engine(e.Name)
	judged := m.pipeline.Judged(e.Name)
	s := engines.New(engines.Config{Name: e.Name, Path: e.Path, SHA256: e.SHA256, UID: uid, GID: gid, Memory: int64(e.Memory)}, m.judge.found, &engines.Options{
		Logger: m.log, Store: modelStore{m.checkpoints(), m.store}, Replay: m.rejudge,
		SocketDir: m.cfg.RunDir, Holds: holds,
		Judged: func(b *engine.Batch, verdict time.Time) {
			judged(b, verdict)
			took := verdict.Sub(b.Received)
			counts.Verdict(b.Count, took)
			if m.observe != nil {
				m.observe(b, verdict)
			}
		},
	})
	m.engines = append(m.engines, s)
	m.pipeline.Add(s)
	return nil
}

// engineUser is whom an engine is to run as; nil is the monitor's own user.
func engineUser(name string) (uid, gid *uint32, err error) {
	if name == "" {
		name = "outguard-engine"
	}
	u, err := user.Lookup(name)
	if err != nil {
		return nil, nil, err
	}
	if u.Uid == strconv.Itoa(os.Geteuid()) {
		return nil, nil, nil
	}
	if !maySetUser() {
		return nil, nil, fmt.Errorf("no CAP_SETUID and CAP_SETGID to become %s", name)
	}
	id, err1 := strconv.ParseUint(u.Uid, 10, 32)
	group, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return nil, nil, err
	}
	uid32, gid32 := uint32(id), uint32(group)
	return &uid32, &gid32, nil
}

// keys are the enrolled ones.
type keys struct{ d *domains }

func (k keys) Key(vm uuid.UUID) ([32]byte, error) {
	w, _ := k.d.get(vm)
	if w.Enrolment == nil {
		return [32]byte{}, fmt.Errorf("domain %s: %w", vm, session.ErrNotEnrolled)
	}
	return w.Enrolment.Key, nil
}

// sink hands what is on record to the engines.
type sink struct{ m *Monitor }

func (s sink) Deliver(ctx context.Context, b *engine.Batch) error { return s.m.pipeline.Submit(ctx, b) }

// domainStates is what libvirt last said.
type domainStates struct{ d *domains }

func (s domainStates) DomainState(vm uuid.UUID) session.DomainState {
	w, ok := s.d.get(vm)
	switch {
	case !ok:
		return session.DomainUnknown
	case w.State == domain.Running:
		return session.DomainRunning
	case w.State == domain.Paused || w.State == domain.Suspended:
		return session.DomainPaused
	case w.State == domain.Unknown:
		return session.DomainUnknown
	}
	return session.DomainOff
}
