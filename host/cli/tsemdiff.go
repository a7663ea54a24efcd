package cli

import (
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/api/safe"
	"github.com/outguard/outguard/plugins/tsem"
	"github.com/outguard/outguard/plugins/tsem/quixote"
)

// difference is one line of tsem diff-states.
type difference struct {
	Only  string `json:"only"` // "a" or "b"
	Point string `json:"point"`
	Count uint64 `json:"count"`
	Event string `json:"event"` // what made it, "" of a model file
}

// compared is its last line.
type compared struct {
	Same    bool   `json:"same"`
	A       string `json:"a"` // state values
	B       string `json:"b"`
	PointsA int    `json:"points_a"`
	PointsB int    `json:"points_b"`
	Common  int    `json:"common"`
	FailedA int    `json:"failed_a"` // lines that were no event
	FailedB int    `json:"failed_b"`
}

func (a *app) tsemDiffCmd() *cobra.Command {
	var dialect string
	var code bool
	cmd := a.command(&cobra.Command{
		Use:   "diff-states A B",
		Short: "Explain why two runs, or model files, have different states",
		Long: `Compare two runs, each an export of events or a model file of Quixote's: the
state values, and the points that only one of them has with what made each of
them first. - is standard input.`,
		Args: cobra.ExactArgs(2), ValidArgsFunction: completeFiles,
	}, func(cmd *cobra.Command, args []string) error {
		d, err := quixote.ParseDialect(dialect)
		if err != nil {
			return usageError{err}
		}
		var runs [2]*quixote.States
		for i, name := range args {
			if runs[i], err = readStates(cmd, name, d); err != nil {
				return err
			}
		}
		same, err := a.diffStates(runs[0], runs[1])
		if err == nil && code && !same {
			return errFound
		}
		return err
	})
	dialectFlag(cmd, &dialect)
	cmd.Flags().BoolVar(&code, "exit-code", false, "exit with 3 if they differ")
	return cmd
}

func readStates(cmd *cobra.Command, name string, d quixote.Dialect) (*quixote.States, error) {
	in, err := input(cmd, name)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	s, err := quixote.ReadStates(in, d, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return s, nil
}

func (a *app) diffStates(one, two *quixote.States) (same bool, err error) {
	x, y := one.Model.State(), two.Model.State()
	out := compared{
		Same: x == y, A: hex.EncodeToString(x[:]), B: hex.EncodeToString(y[:]), FailedA: one.Failed, FailedB: two.Failed,
		PointsA: len(one.Model.Points()), PointsB: len(two.Model.Points()),
	}
	onlyA, err := a.only("a", one, two)
	if err != nil {
		return false, err
	}
	if _, err = a.only("b", two, one); err != nil {
		return false, err
	}
	out.Common = out.PointsA - onlyA
	if a.json {
		return out.Same, a.printJSON(out)
	}
	a.fact("state of A", out.A)
	a.fact("state of B", out.B)
	a.fact("points", fmt.Sprintf("%d and %d, %d in both", out.PointsA, out.PointsB, out.Common))
	if n := out.FailedA + out.FailedB; n > 0 {
		a.fact("no events", fmt.Sprintf("%d lines of A, %d of B", out.FailedA, out.FailedB))
	}
	return out.Same, nil
}

// only prints the points that of has and other has not.
func (a *app) only(name string, of, other *quixote.States) (n int, err error) {
	for _, p := range of.Model.Points() {
		if _, has := other.Model.Find(p.Value); has {
			continue
		}
		n++
		if err := a.printDifference(name, of, &p); err != nil {
			return n, err
		}
	}
	return n, nil
}

func (a *app) printDifference(name string, of *quixote.States, p *tsem.Point) error {
	d := difference{Only: name, Point: hex.EncodeToString(p.Value[:]), Count: p.Count, Event: of.Events[p.Value]}
	if a.json {
		d.Event = safe.Quote(d.Event)
		return a.printJSON(d)
	}
	a.printf("only in %s: %s %s\n", strings.ToUpper(name), d.Point[:16], quote(d.Event))
	return nil
}
