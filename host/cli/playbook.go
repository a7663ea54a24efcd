package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/api/safe"
	"github.com/outguard/outguard/host/decide"
)

const defaultPlaybook = "/etc/outguard/playbook.yaml"

func (a *app) playbookCmd() *cobra.Command {
	return group(&cobra.Command{Use: "playbook", Short: "Show and check what follows from which finding"},
		a.playbookShowCmd(), a.playbookCheckCmd(), a.playbookTestCmd(), a.playbookReloadCmd())
}

func (a *app) playbookReloadCmd() *cobra.Command {
	return a.command(&cobra.Command{
		Use: "reload", Short: "Have the monitor decide by the playbook that is on disk now",
		Long: `Have the monitor read the file of its playbook anew, as SIGHUP does. It comes
into force as a whole; one with a mistake does not, and the one before stays.
What its rules did counts for rules of the same name.`,
		Args: cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string) error {
		client, err := a.client()
		if err != nil {
			return err
		}
		r, err := client.ReloadPlaybook(cmd.Context(), &apipb.ReloadPlaybookRequest{})
		if err != nil {
			return err
		}
		a.print(r.Playbook, func() { a.printf("in force: %s\n", playbookLine(r.Playbook)) })
		return nil
	})
}

// playbookLine is a playbook in force, in words.
func playbookLine(p *apipb.Playbook) string {
	file := "the built-in one (`outguard playbook show` prints it)"
	if p.File != "" {
		file = quote(p.File)
	}
	line := fmt.Sprintf("%s, %d rules, sha256 %.16s, loaded %s", file, p.Rules, safe.Text(p.Sha256), clock(p.Loaded))
	if p.DryRun {
		line += ", dry run: nothing is ordered"
	}
	return line
}

func (a *app) playbookShowCmd() *cobra.Command {
	var builtin bool
	cmd := a.command(&cobra.Command{
		Use: "show", Short: "Print the playbook that the configuration names, else the built-in one", Args: cobra.NoArgs,
	}, func(*cobra.Command, []string) error {
		file, text, err := a.playbook("")
		if builtin {
			file, text, err = "", decide.DefaultText(), nil
		}
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(struct {
				File string `json:"file"` // "": built in
				Text string `json:"text"`
			}{file, text})
		}
		a.printf("%s", safeLines(text))
		return nil
	})
	cmd.Flags().BoolVar(&builtin, "builtin", false, "print the built-in one, to start from")
	return cmd
}

func (a *app) playbookCheckCmd() *cobra.Command {
	cmd := a.command(&cobra.Command{
		Use: "check [FILE]", Short: "Validate a playbook; errors name line and column",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completeYAML,
	}, func(_ *cobra.Command, args []string) error {
		file, text, err := a.playbook(strings.Join(args, ""))
		if err != nil {
			return err
		}
		if file == "" {
			file = "built-in playbook"
		}
		p, err := decide.Parse([]byte(text))
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		for _, w := range lacking(p) {
			_, _ = fmt.Fprintf(a.err, "%s: warning: %s\n", quote(file), safe.Text(w))
		}
		if a.json {
			return a.printJSON(struct {
				OK    bool `json:"ok"`
				Rules int  `json:"rules"`
			}{true, len(p.Rules)})
		}
		a.printf("%s: ok, %d rules\n", quote(file), len(p.Rules))
		return nil
	})
	return cmd
}

// playbook reads the named file, else the configuration's, else the one at its
// usual place; without any it is the built-in one, and file is empty.
func (a *app) playbook(named string) (file, text string, err error) {
	p, err := a.paths()
	if err != nil {
		return "", "", err
	}
	file, must := named, true
	if file == "" {
		file = p.Playbook
	}
	if file == "" {
		file, must = defaultPlaybook, false
	}
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) && !must {
		return "", decide.DefaultText(), nil
	}
	if err != nil {
		return "", "", fmt.Errorf("playbook: %w", err)
	}
	return file, string(b), nil
}

// lacking says what alerts need that is not on this host. It is a warning: the
// file may be for another one.
func lacking(p *decide.Playbook) (out []string) {
	for _, t := range p.Alerts {
		if len(t.Command) > 0 {
			if _, err := exec.LookPath(t.Command[0]); err != nil {
				out = append(out, fmt.Sprintf("alert %s: %v", t.Name, err))
			}
		}
		if t.Token != "" {
			if _, err := os.Stat(t.Token); err != nil {
				out = append(out, fmt.Sprintf("alert %s: token_file: %v", t.Name, err))
			}
		}
	}
	return out
}
