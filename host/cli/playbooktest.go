package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/decide"
	"github.com/outguard/outguard/host/domain"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/plugins/engine"
)

// policyTest replays recorded findings through a playbook.
type policyTest struct {
	a        *app
	store    string
	names    map[uuid.UUID]string
	since    time.Time
	until    time.Time
	all      bool
	replay   *decide.Replay
	playbook *decide.Playbook
}

func (a *app) playbookTestCmd() *cobra.Command {
	var ranges []string
	var from, until, store string
	t := &policyTest{a: a}
	cmd := a.command(&cobra.Command{
		Use:   "test FILE",
		Short: "Replay recorded findings through a playbook and print what it would have done",
		Long: `Ask a playbook about the findings that are on record, as if it had been in force
then, and print each decision that would have ordered something, beside what was
decided in fact; then what each rule would have done in all. Nothing is ordered,
and no monitor needs to run.

A range is a domain by name or UUID, with :FROM-TO behind it for the records with
these indexes; without one it is all domains. What a decision would have changed
is not known: a VM that it would have stopped is taken to have gone on as it did.`,
		Example: `  outguard playbook test new.yaml
  outguard playbook test new.yaml --evidence web --since 7d
  outguard playbook test new.yaml --evidence web:104000-105000 --all`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: completeYAML,
	}, func(cmd *cobra.Command, args []string) error {
		return t.run(cmd.Context(), args[0], store, ranges, from, until)
	})
	f := cmd.Flags()
	f.StringArrayVar(&ranges, "evidence", nil, "this `range` of the record; may come again")
	_ = cmd.RegisterFlagCompletionFunc("evidence", a.completeVMFlag)
	f.StringVar(&store, "store", "", "read this evidence `directory` (default: evidence in the configuration's state_dir)")
	_ = cmd.RegisterFlagCompletionFunc("store", completeDir)
	f.StringVar(&from, "since", "", sinceHelp)
	f.StringVar(&until, "until", "", "up to this `time`, written as for --since")
	f.BoolVar(&t.all, "all", false, "print every finding, also where nothing would be ordered")
	return cmd
}

func completeYAML(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return []cobra.Completion{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
}

func (t *policyTest) run(ctx context.Context, file, store string, ranges []string, since, until string) error {
	p, err := t.a.paths()
	if err != nil {
		return err
	}
	if t.store = store; store == "" {
		t.store = filepath.Join(p.State, evidence.StoreDir)
	}
	if err := t.times(since, until, time.Now()); err != nil {
		return err
	}
	_, text, err := t.a.playbook(file)
	if err != nil {
		return err
	}
	if t.playbook, err = decide.Parse([]byte(text)); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	t.replay = decide.NewReplay(t.playbook)
	t.names = enrolledNames(filepath.Join(p.State, "enroll"))
	streams, err := t.streams(ranges)
	if err != nil {
		return err
	}
	if err := t.merge(ctx, streams, t.take); err != nil {
		return err
	}
	return t.sum()
}

func (t *policyTest) times(since, until string, now time.Time) error {
	for _, f := range []struct {
		flag, text string
		to         *time.Time
	}{{"--since", since, &t.since}, {"--until", until, &t.until}} {
		if f.text == "" {
			continue
		}
		at, err := parseSince(f.text, now)
		if err != nil {
			return usageError{fmt.Errorf("%s %q: write 10m, 2h, 3d, or a time such as 2006-01-02T15:04:05Z, or local 2006-01-02 15:04 or 15:04", f.flag, f.text)}
		}
		*f.to = at
	}
	return nil
}

// enrolledNames are the domains' names, as far as this host knows them.
func enrolledNames(dir string) map[uuid.UUID]string {
	names := map[uuid.UUID]string{}
	list, _ := domain.Enrolments(dir) // without them UUIDs have to do
	for _, e := range list {
		names[e.UUID] = e.Name
	}
	return names
}

// stream is a range of one VM's record.
type stream struct {
	vm       uuid.UUID
	from, to uint64 // to is excluded
}

// streams finds what ranges mean.
func (t *policyTest) streams(ranges []string) (out []stream, err error) {
	all, err := evidence.Streams(t.store)
	if err != nil {
		return nil, readableStore(err)
	}
	if len(ranges) == 0 {
		for _, vm := range all {
			out = append(out, stream{vm: vm, to: 1 << 63})
		}
		return out, nil
	}
	for _, text := range ranges {
		s, err := t.parseRange(text, all)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(out, func(o stream) bool { return o.vm == s.vm }) {
			return nil, usageError{fmt.Errorf("--evidence %q: a second range of one domain", text)}
		}
		out = append(out, s)
	}
	return out, nil
}

func readableStore(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w; there is no record here: name its directory with --store", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; run as root or as the user outguard", err)
	}
	return err
}

// parseRange reads "web", "web:5-10" or the same with a UUID. Names may hold a
// colon.
func (t *policyTest) parseRange(text string, all []uuid.UUID) (stream, error) {
	s := stream{to: 1 << 63}
	name := text
	if i := strings.LastIndexByte(text, ':'); i >= 0 {
		first, last, ok := strings.Cut(text[i+1:], "-")
		from, err1 := strconv.ParseUint(first, 10, 62)
		to, err2 := strconv.ParseUint(last, 10, 62)
		if ok && err1 == nil && err2 == nil {
			if to < from {
				return stream{}, usageError{fmt.Errorf("--evidence %q: it ends before it begins", text)}
			}
			name, s.from, s.to = text[:i], from, to+1
		}
	}
	for _, vm := range all {
		if t.nameOf(vm) == name || vm.String() == name {
			s.vm = vm
			return s, nil
		}
	}
	return stream{}, fmt.Errorf("there is no record of %q in %s; name the domain by its UUID, or as in web:100-200", name, t.store)
}

// met is a finding on record, or that a VM began to run.
type met struct {
	vm      uuid.UUID
	at      time.Time
	finding *engine.Finding  // nil: it began to run
	did     *decide.Decision // what was decided of it then; nil: not on record
}

// merge goes through all streams by time.
func (t *policyTest) merge(ctx context.Context, streams []stream, take func(*met) error) error {
	type head struct {
		met
		next func() (met, error, bool)
	}
	var heads []*head
	for _, s := range streams {
		next, stop := iter.Pull2(t.read(ctx, s))
		defer stop()
		heads = append(heads, &head{next: next})
	}
	advance := func(h *head) (more bool, err error) {
		h.met, err, more = h.next()
		return more, err
	}
	for i := 0; i < len(heads); {
		more, err := advance(heads[i])
		switch {
		case err != nil:
			return err
		case !more:
			heads = slices.Delete(heads, i, i+1)
		default:
			i++
		}
	}
	for len(heads) > 0 {
		first := slices.MinFunc(heads, func(a, b *head) int { return a.at.Compare(b.at) })
		if err := take(&first.met); err != nil {
			return err
		}
		more, err := advance(first)
		if err != nil {
			return err
		}
		if !more {
			heads = slices.DeleteFunc(heads, func(h *head) bool { return h == first })
		}
	}
	return nil
}

// read is what one stream holds of findings and starts. The decision of a finding
// follows it in the record.
func (t *policyTest) read(ctx context.Context, s stream) iter.Seq2[met, error] {
	return func(yield func(met, error) bool) {
		var waits *met
		give := func(m *met) error {
			if m != nil && !yield(*m, nil) {
				return evidence.ErrStop
			}
			return ctx.Err()
		}
		err := evidence.NewReader(evidence.StreamDir(t.store, s.vm)).Read(s.from, s.to, func(r *evidence.Record) error {
			if r.Time.Before(t.since) || (!t.until.IsZero() && r.Time.After(t.until)) {
				return ctx.Err()
			}
			m, did, err := t.meet(s.vm, r)
			switch {
			case err != nil:
				return err
			case did != nil && waits != nil && waits.finding != nil && waits.finding.ID == did.Finding:
				waits.did = did
			case m != nil:
				before := waits
				waits = m
				return give(before)
			}
			return nil
		})
		if err == nil {
			err = give(waits)
		}
		if err != nil && !errors.Is(err, evidence.ErrStop) {
			yield(met{}, fmt.Errorf("record of %s: %w", s.vm, readableStore(err)))
		}
	}
}

// meet is what a record says: a finding or a start, or a decision.
func (t *policyTest) meet(vm uuid.UUID, r *evidence.Record) (*met, *decide.Decision, error) {
	switch r.Kind {
	case evidence.KindFinding:
		f := new(engine.Finding)
		if err := json.Unmarshal(r.Payload, f); err != nil {
			return nil, nil, fmt.Errorf("finding in record %d: %w", r.Index, err)
		}
		return &met{vm: vm, at: f.At, finding: f}, nil, nil
	case evidence.KindDecision:
		d := new(decide.Decision)
		if err := json.Unmarshal(r.Payload, d); err != nil {
			return nil, nil, fmt.Errorf("decision in record %d: %w", r.Index, err)
		}
		return nil, d, nil
	case evidence.KindNote:
		var n struct {
			What string `json:"what"`
		}
		if json.Unmarshal(r.Payload, &n) == nil && (n.What == "domain-started" || n.What == "domain-resumed") {
			return &met{vm: vm, at: r.Time}, nil, nil
		}
	}
	return nil, nil, nil
}
