package cli

import (
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/api/safe"
	"github.com/outguard/outguard/plugins/tsem"
)

// tsemViews are what tsem show shows, by its name.
var tsemViews = []cobra.Completion{
	"trajectory", "forensics", "coefficients", "counts", "events", "measurement", "state", "aggregate", "map",
}

func (a *app) tsemShowCmd() *cobra.Command {
	var model, engine, workload string
	cmd := a.command(&cobra.Command{
		Use:   "show VIEW",
		Short: "Show a model as TSEM's and Quixote's consoles do",
		Long: `Show a model, of a domain or of a file. VIEW is one of

    trajectory    what it learned, in the order in which it came
    forensics     what came as violations
    coefficients  every point
    counts        every point and how often it was seen
    events        the violations, as findings
    measurement   the hash chain over the points in their order
    state         the hash chain over the points in the order of their bytes
    aggregate     the platform's aggregate, as the measurement begins with it
    map           the aggregate and every point`,
		Args: cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs), ValidArgs: tsemViews,
	}, func(cmd *cobra.Command, args []string) error {
		name, err := a.theModel(cmd, model, engine)
		if err != nil {
			return err
		}
		if args[0] == "events" {
			return a.violations(cmd, name)
		}
		m, err := a.modelOf(cmd.Context(), name, engine, workload)
		if err != nil {
			return err
		}
		return a.showView(args[0], m)
	})
	cmd.ValidArgsFunction = nil
	engineFlag(cmd, &engine)
	a.workloadFlag(cmd, &workload)
	cmd.Flags().StringVar(&model, "model", "", "of this `domain`, or model file (default: the one domain that has a model)")
	_ = cmd.RegisterFlagCompletionFunc("model", a.completeVMOrFile)
	return cmd
}

// theModel is the model that was named, or else the only one there is.
func (a *app) theModel(cmd *cobra.Command, named, engine string) (string, error) {
	if named != "" {
		return named, nil
	}
	all, err := a.models(cmd.Context(), &apipb.ListModelsRequest{Engine: engine, Own: true})
	if err != nil {
		return "", err
	}
	if len(all) != 1 {
		return "", fmt.Errorf("%d domains have models: say which with --model", len(all))
	}
	return all[0].Uuid, nil
}

func (a *app) showView(view string, m *tsem.Model) error {
	switch view {
	case "measurement":
		return a.showValue(view, m.Measurement())
	case "state":
		return a.showValue(view, m.State())
	case "aggregate", "map":
		aggregate, has := m.Aggregate()
		if !has && view == "aggregate" {
			return errors.New("no aggregate yet: it is set, or zero, with the first event")
		}
		if view == "aggregate" {
			return a.showValue(view, aggregate)
		}
		if err := a.showValue("aggregate", aggregate); err != nil {
			return err
		}
	}
	for i, p := range m.Points() {
		if view == "trajectory" && !p.Valid || view == "forensics" && p.Valid {
			continue
		}
		if err := a.showPoint(view, m, i); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) showValue(name string, v tsem.ID) error {
	text := hex.EncodeToString(v[:])
	if a.json {
		return a.printJSON(map[string]string{name: text})
	}
	a.printf("%s\n", text)
	return nil
}

func (a *app) showPoint(view string, m *tsem.Model, place int) error {
	l := lineOf(m, place)
	if a.json {
		return a.printJSON(l)
	}
	switch view {
	case "counts":
		a.printf("%s %d\n", l.Point, l.Count)
	case "coefficients", "map":
		a.printf("%s\n", l.Point)
	default:
		when := clock(l.Received)
		if when == "" {
			when = "-"
		}
		a.printf("%s  pid %d  %s  [%s]\n", when, l.PID, safe.Text(l.words()), l.Point[:16])
	}
	return nil
}

// violations prints the findings of a domain's model.
func (a *app) violations(cmd *cobra.Command, vm string) error {
	if isFile(vm) {
		return errors.New("a model file has no findings; those are a domain's")
	}
	client, err := a.client()
	if err != nil {
		return err
	}
	s, err := client.Findings(cmd.Context(), &apipb.FindingsRequest{Vm: vm})
	if err != nil {
		return err
	}
	return receive(cmd.Context(), a, s, false, func(m *apipb.FindingsResponse) {
		if f := m.Finding; f.Rule == tsem.RuleViolation || f.Rule == tsem.RuleUntrusted {
			a.print(f, func() { a.printf("%s\n", findingLine(f)) })
		}
	})
}
