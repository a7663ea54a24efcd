package monitor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/decide"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/plugins/engine"
)

// loaded is a playbook in force.
type loaded struct {
	*decide.Playbook
	file string // "" for the built-in one
	sum  string // SHA-256 of its text, hex
	at   time.Time
}

// loadPlaybook reads the file that cfg names, else the one at its usual place,
// else the built-in one.
func loadPlaybook(cfg *Config) (*loaded, error) {
	file, must := cfg.Playbook, true
	if file == "" {
		file, must = DefaultPlaybookPath, false
	}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) && !must {
		file, text, err = "", []byte(decide.DefaultText()), nil
	}
	if err != nil {
		return nil, fmt.Errorf("playbook: %w", err)
	}
	p, err := decide.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("playbook %s: %w", file, err)
	}
	sum := sha256.Sum256(text)
	return &loaded{Playbook: p, file: file, sum: hex.EncodeToString(sum[:]), at: time.Now()}, nil
}

func (l *loaded) String() string {
	file := l.file
	if file == "" {
		file = "built in"
	}
	return fmt.Sprintf("%s, sha256 %s, %d rules", file, l.sum, len(l.Rules))
}

// Reloads has the playbook read anew whenever a signal comes. It belongs before
// Run.
func (m *Monitor) Reloads(signals <-chan os.Signal) { m.hangups = signals }

// inForce puts on the host's record by what is decided from now on.
func (m *Monitor) inForce(by string) {
	p := m.judge.inForce()
	m.log.Info("playbook in force", "playbook", p.String(), "dry_run", p.DryRun, "by", by)
	m.keep(uuid.Nil, evidence.KindNote, time.Now(), note{What: "playbook", Text: fmt.Sprintf("%s, by %s", p, by)})
}

func (m *Monitor) tellPlaybook(context.Context) error { m.inForce("outguardd's start"); return nil }

// followPlaybook takes the signals that have the playbook read anew.
func (m *Monitor) followPlaybook(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-m.hangups:
			_ = m.reload("SIGHUP") // it has been told
		}
	}
}

// reload puts the playbook that is on disk in force, as a whole. Where it cannot
// be, the one before stays, and that is a finding: somebody thinks otherwise.
func (m *Monitor) reload(by string) error {
	p, err := loadPlaybook(m.cfg)
	if err != nil {
		m.judge.found(engine.Finding{
			Rule: "monitor/playbook", Severity: engine.High,
			Reason: "The playbook on disk cannot come into force; the one before stays.",
			Detail: map[string]string{"error": err.Error(), "in_force": m.judge.inForce().String(), "by": by},
		})
		return err
	}
	m.judge.mu.Lock()
	m.judge.playbook = p
	m.judge.mu.Unlock()
	m.inForce(by)
	return nil
}

// inForce is the playbook by which is decided now.
func (j *judge) inForce() *loaded {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.playbook
}

func (b backend) ReloadPlaybook(_ context.Context, by api.Caller) (*apipb.Playbook, error) {
	if err := b.m.reload(by.String()); err != nil {
		return nil, api.Error(connect.CodeFailedPrecondition, "correct it: outguard playbook check tells each mistake; the playbook before stays in force", err)
	}
	return playbookOf(b.m.judge.inForce()), nil
}

func playbookOf(p *loaded) *apipb.Playbook {
	return &apipb.Playbook{File: p.file, Sha256: p.sum, Loaded: api.FormatTime(p.at), Rules: uint32(len(p.Rules)), DryRun: p.DryRun}
}
