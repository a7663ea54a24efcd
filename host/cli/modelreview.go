package cli

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/api/safe"
	"github.com/outguard/outguard/plugins/tsem"
)

func (a *app) modelStatusCmd() *cobra.Command {
	r := &apipb.ListModelsRequest{}
	cmd := a.command(&cobra.Command{
		Use:   "status DOMAIN",
		Short: "Tell how far a domain's model has learned",
		Long: `Tell what a domain's model has learned: events and new points of each of the last
hours, how many events were repeats, and whether it has gone quiet: whether an
hour or more has passed, with a hundred events or more, without anything new.`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeVM,
	}, func(cmd *cobra.Command, args []string) error {
		out, err := a.modelsOf(cmd.Context(), r, args[0])
		if err != nil {
			return err
		}
		for _, m := range out {
			a.print(m, func() { a.learned(m) })
		}
		return nil
	})
	engineFlag(cmd, &r.Engine)
	a.workloadFlag(cmd, &r.Workload)
	return cmd
}

func (a *app) learned(m *apipb.Model) {
	a.fact("vm", m.Vm+" "+m.Uuid)
	a.workloadFacts(m)
	a.fact("state", fmt.Sprintf("%s, version %d", sealedWord(m), m.Version))
	a.fact("points", fmt.Sprintf("%d, and %d that came as violations", m.Points, m.Forensics))
	a.fact("last new", clock(m.LastNew))
	a.fact("quiet", quietWord(m))
	if len(m.Hours) == 0 {
		return
	}
	t := a.table("HOUR", "EVENTS", "NEW POINTS", "REPEATS")
	for _, h := range m.Hours {
		t.row(hourText(h.Start), fmt.Sprint(h.Events), fmt.Sprint(h.New), share(h.Events-min(h.New, h.Events), h.Events))
	}
	t.flush()
}

func quietWord(m *apipb.Model) string {
	switch {
	case m.Quiet && m.Sealed:
		return fmt.Sprintf("yes: nothing new in %d events", m.SinceNew)
	case m.Quiet:
		return fmt.Sprintf("yes: nothing new in %d events; `outguard model seal %s` ends learning", m.SinceNew, safe.Text(m.Vm))
	}
	return fmt.Sprintf("no: %d events since the last new point", m.SinceNew)
}

func hourText(s string) string {
	t, err := api.ParseTime(s)
	if err != nil {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04")
}

func share(part, whole uint64) string {
	if whole == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f%%", 100*float64(part)/float64(whole))
}

// pointLine is a point as a line of --json.
type pointLine struct {
	Only     string `json:"only,omitempty"`
	Place    int    `json:"place"` // 1 is the first that came
	Point    string `json:"point"`
	Valid    bool   `json:"valid"`
	Count    uint64 `json:"count"`
	Received string `json:"received"`
	BootNs   uint64 `json:"boot_ns"`
	PID      uint32 `json:"pid"`
	Program  string `json:"program"`
	What     string `json:"what"`
}

func lineOf(m *tsem.Model, place int) pointLine {
	p := &m.Points()[place]
	l := pointLine{Place: place + 1, Point: hex.EncodeToString(p.Value[:]), Valid: p.Valid, Count: p.Count}
	if n, has := m.Note(p); has {
		l.Received, l.BootNs, l.PID = api.FormatTime(n.Received), n.BootNs, n.PID
		l.Program, l.What = safe.Quote(n.Program), safe.Quote(n.What)
	}
	return l
}

// words say a point for people.
func (l *pointLine) words() string {
	if l.What == "" && l.Program == "" {
		return "point " + l.Point + " (nothing says what made it)"
	}
	return fmt.Sprintf("%s %s", l.Program, l.What)
}

// contrast is the last line of model diff.
type contrast struct {
	Same   bool      `json:"same"` // the points that are no violations, and pseudonyms
	A      modelFact `json:"a"`
	B      modelFact `json:"b"`
	Common int       `json:"common"`
}

type modelFact struct {
	Mapping     string `json:"mapping"`
	Sealed      bool   `json:"sealed"`
	Version     uint64 `json:"version"`
	Points      uint64 `json:"points"`
	Pseudonyms  int    `json:"pseudonyms"`
	Measurement string `json:"measurement"`
	State       string `json:"state"`
}

func factOf(m *tsem.Model) modelFact {
	measurement, state := m.Measurement(), m.State()
	return modelFact{
		Mapping: m.Mapping().String(), Sealed: m.Sealed(), Version: m.Version(), Points: m.Valid(), Pseudonyms: len(m.Pseudonyms()),
		Measurement: hex.EncodeToString(measurement[:]), State: hex.EncodeToString(state[:]),
	}
}

func (a *app) modelDiffCmd() *cobra.Command {
	var engine, workload string
	var code bool
	cmd := a.command(&cobra.Command{
		Use:   "diff A B",
		Short: "Explain in words what one model knows and another does not",
		Long: `Compare two models, each a domain's or a model file: which program did what to
which file or socket that only one of them knows. Violations do not count. A
name that is a file's is taken as one.`,
		Args: cobra.ExactArgs(2), ValidArgsFunction: a.completeVMOrFile,
	}, func(cmd *cobra.Command, args []string) error {
		var m [2]*tsem.Model
		for i, name := range args {
			var err error
			if m[i], err = a.modelOf(cmd.Context(), name, engine, workload); err != nil {
				return err
			}
		}
		if x, y := m[0].Mapping(), m[1].Mapping(); x != y {
			return fmt.Errorf("%s maps events by %s, %s by %s: no point of one is one of the other's", quote(args[0]), x, quote(args[1]), y)
		}
		same, err := a.contrast(m[0], m[1])
		if err == nil && code && !same {
			return errFound
		}
		return err
	})
	engineFlag(cmd, &engine)
	a.workloadFlag(cmd, &workload)
	cmd.Flags().BoolVar(&code, "exit-code", false, "exit with 3 if they differ")
	return cmd
}

func (a *app) completeVMOrFile(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.vmNames(cmd), cobra.ShellCompDirectiveDefault
}

func (a *app) contrast(one, two *tsem.Model) (same bool, err error) {
	onlyA, err := a.known("a", one, two)
	if err != nil {
		return false, err
	}
	onlyB, err := a.known("b", two, one)
	if err != nil {
		return false, err
	}
	c := contrast{
		Same: onlyA+onlyB == 0 && samePseudonyms(one, two), A: factOf(one), B: factOf(two), Common: int(one.Valid()) - onlyA,
	}
	if a.json {
		return c.Same, a.printJSON(c)
	}
	a.fact("points", fmt.Sprintf("%d and %d, %d in both", c.A.Points, c.B.Points, c.Common))
	a.fact("state of A", c.A.State)
	a.fact("state of B", c.B.State)
	if !samePseudonyms(one, two) {
		a.fact("pseudonyms", fmt.Sprintf("they differ: %d and %d", c.A.Pseudonyms, c.B.Pseudonyms))
	}
	return c.Same, nil
}

func samePseudonyms(one, two *tsem.Model) bool {
	x, y := one.Pseudonyms(), two.Pseudonyms()
	if len(x) != len(y) {
		return false
	}
	for i := range x {
		if x[i] != y[i] {
			return false
		}
	}
	return true
}

// known prints what m knows as normal and other does not.
func (a *app) known(name string, m, other *tsem.Model) (n int, err error) {
	for i, p := range m.Points() {
		if q, has := other.Find(p.Value); !p.Valid || has && q.Valid {
			continue
		}
		n++
		l := lineOf(m, i)
		l.Only = name
		if !a.json {
			a.printf("only in %s: %s\n", map[string]string{"a": "A", "b": "B"}[name], safe.Text(l.words()))
			continue
		}
		if err := a.printJSON(l); err != nil {
			return n, err
		}
	}
	return n, nil
}

func (a *app) modelAcceptCmd() *cobra.Command {
	var vm string
	cmd := a.command(&cobra.Command{
		Use:   "accept FINDING...",
		Short: "Fold reviewed violations back into the model: they are normal from now on",
		Long: `Accept violations that a person has looked at, by the ids of their findings (in
brackets in outguard findings). What they found is normal from now on, in a
sealed model too, and a task that was untrusted for nothing else is trusted
again. All findings have to be of one domain, and of one workload in it.`,
		Args: cobra.MinimumNArgs(1),
	}, func(cmd *cobra.Command, args []string) error {
		r, err := a.acceptable(cmd.Context(), vm, args)
		if err != nil {
			return err
		}
		client, err := a.client()
		if err != nil {
			return err
		}
		out, err := client.AcceptModel(cmd.Context(), r)
		if err != nil {
			return err
		}
		a.print(out.Model, func() { a.describeModel(out.Model) })
		return nil
	})
	a.vmFlag(cmd, &vm)
	return cmd
}

// acceptable finds the findings, and asks for what they found.
func (a *app) acceptable(ctx context.Context, vm string, ids []string) (*apipb.AcceptModelRequest, error) {
	found, err := a.findingsOf(ctx, vm, ids)
	if err != nil {
		return nil, err
	}
	r := &apipb.AcceptModelRequest{}
	for _, id := range ids {
		f := found[id]
		switch {
		case f == nil:
			return nil, fmt.Errorf("no finding %s; outguard findings lists them", quote(id))
		case f.Detail["point"] == "":
			return nil, fmt.Errorf("finding %s (%s) is not of something that a model could learn", quote(id), safe.Text(f.Rule))
		case r.Vm != "" && (r.Vm != f.Uuid || r.Engine != f.Engine):
			return nil, fmt.Errorf("finding %s is of another domain than those before it", quote(id))
		case r.Vm != "" && r.Workload != f.Detail["workload"]:
			return nil, fmt.Errorf("finding %s is of another container than those before it", quote(id))
		}
		r.Vm, r.Engine, r.Workload = f.Uuid, f.Engine, f.Detail["workload"]
		r.Points = append(r.Points, f.Detail["point"])
	}
	return r, nil
}

// findingsOf reads findings until it has those.
func (a *app) findingsOf(ctx context.Context, vm string, ids []string) (map[string]*apipb.Finding, error) {
	client, err := a.client()
	if err != nil {
		return nil, err
	}
	s, err := client.Findings(ctx, &apipb.FindingsRequest{Vm: vm})
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Close() }()
	found := map[string]*apipb.Finding{}
	for _, id := range ids {
		found[id] = nil
	}
	for missing := len(found); missing > 0 && s.Receive(); {
		f := s.Msg().Finding
		if was, wanted := found[f.Id]; wanted && was == nil {
			found[f.Id] = f
			missing--
		}
	}
	return found, s.Err()
}

func (a *app) modelSetCmd() *cobra.Command {
	r := &apipb.SetModelRequest{}
	var paths []string
	cmd := a.command(&cobra.Command{
		Use:   "set DOMAIN",
		Short: "Set the aggregate, the base or pseudonyms of a domain's model",
		Long: `Set what a person says of a domain's model. The aggregate is the platform's, with
which the measurement begins: another one than before begins it anew. The base is
a verifier's nonce that all of a measurement holds, so it can be set only before
the model has anything. A file with a pseudonym may change its content.`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeVM,
	}, func(cmd *cobra.Command, args []string) error {
		r.Vm = args[0]
		for _, path := range paths {
			p := tsem.Pseudonym([]byte(path))
			r.Pseudonyms = append(r.Pseudonyms, hex.EncodeToString(p[:]))
		}
		if r.Base == "" && r.Aggregate == "" && len(r.Pseudonyms) == 0 {
			return usageError{errors.New("nothing to set: --aggregate, --base or --pseudonym")}
		}
		client, err := a.client()
		if err != nil {
			return err
		}
		out, err := client.SetModel(cmd.Context(), r)
		if err != nil {
			return err
		}
		a.print(out.Model, func() { a.describeModel(out.Model) })
		return nil
	})
	engineFlag(cmd, &r.Engine)
	a.workloadFlag(cmd, &r.Workload)
	f := cmd.Flags()
	f.StringVar(&r.Aggregate, "aggregate", "", "the platform's aggregate, 32 bytes in `hex`")
	f.StringVar(&r.Base, "base", "", "the base, 32 bytes in `hex`")
	f.StringArrayVar(&paths, "pseudonym", nil, "let the file at this `path`, as events tell it, change its content; may come again")
	return cmd
}
