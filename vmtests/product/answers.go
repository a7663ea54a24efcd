package product

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// What `outguard --json` prints, as far as it is used here. The product's own
// types are not imported: a program of an operator's reads the same text.
type (
	// VM is one of `vms`.
	VM struct {
		Name, UUID, State, Transport string
		Enrolled                     bool
		Session                      *Session
		Classes                      []struct {
			Class                   string
			Received, Lost, Missing uint64
		}
	}
	// Session is a VM's agent.
	Session struct {
		State, Kernel, Build string
		Hooks                []struct {
			Name                        string
			Wanted, Available, Attached bool
		}
	}
	// Finding is one of `findings`.
	Finding struct {
		ID, Engine, VM, Rule, Severity, Technique, Reason, Event, Comm, Path string
		At, Received                                                         Time
		Pid                                                                  uint32
	}
	// Order is one of `orders`.
	Order struct {
		ID, VM, Step, State, Error, Finding, Bundle string
		Received, Found, Decided, Effect, Ended     Time
	}
	// Model is one of `model list`.
	Model struct {
		Engine, VM                 string
		Sealed                     bool
		Points, Events, Violations uint64
	}
)

// Time is RFC 3339, or "" for none.
type Time struct{ time.Time }

// UnmarshalJSON reads it.
func (t *Time) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil || s == "" {
		return err
	}
	var err error
	t.Time, err = time.Parse(time.RFC3339Nano, s)
	return err
}

// ask runs a verb with --json and reads what it prints, one object a line.
func ask[T any](ctx context.Context, p *Install, args ...string) ([]T, error) {
	out, err := p.CLI(ctx, append(args, "--json")...)
	if err != nil {
		return nil, err
	}
	var all []T
	for line := range strings.Lines(out) {
		var v T
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			return nil, fmt.Errorf("outguard %s: line %q: %w", strings.Join(args, " "), line, err)
		}
		all = append(all, v)
	}
	return all, nil
}

// VM returns one domain as the monitor sees it.
func (p *Install) VM(ctx context.Context, name string) (VM, error) {
	return one[VM](ask[VM](ctx, p, "vms", name))
}

// Model returns a domain's model.
func (p *Install) Model(ctx context.Context, name string) (Model, error) {
	return one[Model](ask[Model](ctx, p, "model", "show", name))
}

func one[T any](all []T, err error) (T, error) {
	if err == nil && len(all) != 1 {
		err = fmt.Errorf("%d answers, want one", len(all))
	}
	if err != nil {
		return *new(T), err
	}
	return all[0], nil
}

// Findings returns a domain's findings of a severity at least, oldest first.
func (p *Install) Findings(ctx context.Context, name, severity string) ([]Finding, error) {
	return ask[Finding](ctx, p, "findings", "--vm", name, "--min-severity", severity)
}

// Orders returns a domain's orders, oldest first.
func (p *Install) Orders(ctx context.Context, name string) ([]Order, error) {
	return ask[Order](ctx, p, "orders", "--vm", name)
}

// Attached tells whether the agent is heard and which hooks that are asked for
// and available it has no program on.
func (v VM) Attached() (live bool, missing []string) {
	if v.Session == nil || v.Session.State != "live" {
		return false, nil
	}
	for _, h := range v.Session.Hooks {
		if h.Wanted && h.Available && !h.Attached {
			missing = append(missing, h.Name)
		}
	}
	slices.Sort(missing)
	return len(v.Session.Hooks) > 0, missing
}

// Channel is how an enrolled domain reaches the monitor, as the enrolment's
// file tells it: there is something to serve, beside QEMU, where Vhost is.
type Channel struct {
	Transport     string
	CID           uint32
	Vhost, Socket string
}

// Enroll enrols a domain that is shut off, by a transport or, with "", the default.
func (p *Install) Enroll(ctx context.Context, name, transport string) (Channel, error) {
	args := []string{"enroll", name}
	if transport != "" {
		args = append(args, "--transport", transport)
	}
	if _, err := p.CLI(ctx, args...); err != nil {
		return Channel{}, err
	}
	files, err := filepath.Glob(filepath.Join(p.State, "enroll", "*.json"))
	if err != nil {
		return Channel{}, err
	}
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			return Channel{}, err
		}
		var e struct {
			Name string
			Channel
		}
		if err := json.Unmarshal(text, &e); err != nil {
			return Channel{}, fmt.Errorf("enrolment %s: %w", path, err)
		}
		if e.Name == name {
			return e.Channel, nil
		}
	}
	return Channel{}, fmt.Errorf("outguard enroll %s: no enrolment in %s names it", name, filepath.Join(p.State, "enroll"))
}
