package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/api/safe"
	"github.com/outguard/outguard/host/bundle"
	"github.com/outguard/outguard/host/evidence"
)

func (a *app) bundleCmd() *cobra.Command {
	return group(&cobra.Command{Use: "bundle", Short: "List, show, verify and pack what was captured"},
		a.bundleListCmd(), a.bundleShowCmd(), a.bundleVerifyCmd(), a.bundlePackCmd(), a.bundleExtractCmd())
}

func (a *app) bundleListCmd() *cobra.Command {
	r := &apipb.ListBundlesRequest{}
	cmd := a.command(&cobra.Command{
		Use: "list", Short: "List the bundles on this host", Args: cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string) error {
		client, err := a.client()
		if err != nil {
			return err
		}
		out, err := client.ListBundles(cmd.Context(), r)
		if err != nil {
			return err
		}
		printAll(a, out.Bundles, "no bundles; `outguard capture DOMAIN` makes one",
			[]string{"CREATED", "VM", "SIZE", "FINDING", "DIR"}, func(b *apipb.Bundle) []string {
				return []string{clock(b.Created), vmName(b), size(b.Bytes), strings.Join(b.Findings, " "), b.Dir}
			})
		return nil
	})
	a.vmFlag(cmd, &r.Vm)
	return cmd
}

func (a *app) bundleShowCmd() *cobra.Command {
	var identity string
	cmd := a.command(&cobra.Command{
		Use:   "show DIR|FILE",
		Short: "Show what a bundle says: the timeline, its parts, the evidence range",
		Long: `Show a bundle, given as its directory, as one file, or as its name among this host's
bundles. What is shown is not verified: outguard bundle verify does that. One file
is read as far as it must be, and nothing of it is written to disk.`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeBundle,
	}, func(cmd *cobra.Command, args []string) error {
		path, err := a.bundleDir(args[0])
		if err != nil {
			return err
		}
		s, err := a.shownBundle(cmd.Context(), path, identity)
		if err != nil {
			return readable(err)
		}
		if a.json {
			return a.printJSON(s)
		}
		return a.showBundle(s)
	})
	identityFlag(cmd, &identity)
	return cmd
}

func (a *app) shownBundle(ctx context.Context, path, identity string) (*bundle.Shown, error) {
	if !bundle.IsArchive(path) {
		return bundle.Show(path)
	}
	ids, err := identities(identity)
	if err != nil {
		return nil, err
	}
	bar := a.progress()
	defer bar.end()
	return bundle.ShowArchive(ctx, path, &bundle.ArchiveOptions{Identities: ids, Progress: bar.bytes})
}

func (a *app) showBundle(s *bundle.Shown) error {
	m := s.Manifest
	a.fact("bundle", s.Dir)
	a.fact("host", m.Host)
	a.fact("vm", m.VMName+" "+m.VM.String())
	if m.Finding != "" {
		a.fact("finding", m.Finding)
	}
	a.fact("order", m.Order)
	a.fact("created", m.Created.Local().Format("2006-01-02 15:04:05.000"))
	a.fact("evidence", fmt.Sprintf("records %d to %d", m.Evidence.First, m.Evidence.Next))
	if s.Timeline != nil {
		a.printf("\n")
		if err := s.Timeline.WriteText(a.out); err != nil { // safe by itself
			return err
		}
	}
	a.printf("\n")
	t := a.table("PART", "SIZE", "SHA-256")
	for _, p := range m.Parts {
		t.row(p.Path, size(uint64(max(p.Size, 0))), p.SHA256.String())
	}
	t.flush()
	if slices.ContainsFunc(m.Parts, func(e bundle.Entry) bool { return e.Path == bundle.PagePart }) {
		if bundle.IsArchive(s.Dir) {
			a.printf("\nall of it on one page, %s: outguard bundle extract %s\n", bundle.PagePart, quote(s.Dir))
		} else {
			a.printf("\nall of it on one page: %s\n", quote(filepath.Join(s.Dir, bundle.PagePart)))
		}
	}
	a.printf("\nverify it with: outguard bundle verify %s\n", quote(s.Dir))
	return nil
}

func (a *app) bundleVerifyCmd() *cobra.Command {
	var key, identity string
	cmd := a.command(&cobra.Command{
		Use:   "verify DIR|FILE",
		Short: "Hold every byte of a bundle against its manifest and this host's key",
		Long: `Verify a bundle: the manifest's signature with this host's public key, the size
and digest of every file, that there is no file beside them, and that the
evidence in it verifies by itself. Each thing that is not as it was written is
named. A bundle in one file is verified as it is read, without being extracted.
One that is encrypted needs an identity; where the host that made it has its label
beside it, the file's own bytes are held against that without one.
No monitor needs to run. A bundle that is not as it was written ends with exit
code 3.`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeBundle,
	}, func(cmd *cobra.Command, args []string) error {
		path, err := a.bundleDir(args[0])
		if err != nil {
			return err
		}
		v, err := a.verifier(key)
		if err != nil {
			return err
		}
		ids, err := identities(identity)
		if err != nil {
			return err
		}
		bar := a.progress()
		var r bundle.Report
		if bundle.IsArchive(path) && ids == nil && bundle.IsEncrypted(path) && bundle.HasLabel(path) {
			l, err := bundle.VerifyLabelled(cmd.Context(), path, v, bar.bytes)
			bar.end()
			return a.verifiedLabel(path, v, l, err)
		}
		if bundle.IsArchive(path) {
			r, err = bundle.VerifyArchive(cmd.Context(), path, v, &bundle.ArchiveOptions{Identities: ids, Progress: bar.bytes})
		} else {
			r, err = bundle.VerifyProgress(cmd.Context(), path, v, bar.bytes)
		}
		bar.end()
		return a.verified(&r, err)
	})
	keyFlag(cmd, &key)
	identityFlag(cmd, &identity)
	return cmd
}

// verifiedLabel says what is known of an archive that nobody here can read.
func (a *app) verifiedLabel(path string, v note.Verifier, l *bundle.Label, err error) error {
	if errors.Is(err, bundle.ErrChanged) || errors.Is(err, evidence.ErrSignature) {
		return fmt.Errorf("%w: %w", errVerify, err)
	}
	if err != nil {
		return readable(err)
	}
	signer := fmt.Sprintf("%s+%08x", v.Name(), v.KeyHash())
	if a.json {
		return a.printJSON(map[string]any{"ok": true, "dir": path, "signer": signer, "bytes": l.Size, "sha256": l.SHA256, "content": false})
	}
	a.printf("ok: the file is as it was written, %s, by the label that %s signed\n", size(uint64(l.Size)), safe.Text(signer))
	_, _ = fmt.Fprintln(a.err, "what is in it was not looked at: that needs an identity that it is for, --identity FILE")
	return nil
}

func (a *app) printBundleReport(r *bundle.Report, verified error) error {
	if a.json {
		return a.printJSON(struct {
			OK bool `json:"ok"`
			*bundle.Report
		}{verified == nil, r})
	}
	for _, p := range r.Problems {
		a.printf("PROBLEM  %s\n", safe.Text(p.String()))
	}
	if verified == nil {
		a.printf("ok: %d files, %s, evidence records %d to %d, signed by %s\n", r.Files, size(uint64(r.Bytes)),
			r.Evidence.First, r.Evidence.Next, safe.Text(r.Signer))
	}
	return nil
}

// bundleDir takes a directory or an archive, or the name of one of this host's
// bundles, in whatever form.
func (a *app) bundleDir(arg string) (string, error) {
	_, err := os.Lstat(arg)
	if err == nil || strings.ContainsRune(arg, filepath.Separator) {
		return filepath.Abs(arg)
	}
	p, perr := a.paths()
	if perr != nil {
		return "", perr
	}
	for _, suffix := range []string{"", bundle.ArchiveSuffix, bundle.ArchiveSuffix + bundle.EncryptedSuffix} {
		path := filepath.Join(p.State, evidence.BundlesDir, arg+suffix)
		if _, err := os.Lstat(path); err == nil {
			return path, nil
		}
	}
	return "", readable(err)
}

// readable adds what to do about a file that is not there or may not be read.
func readable(err error) error {
	switch {
	case errors.Is(err, bundle.ErrEncrypted):
		return fmt.Errorf("%w: name yours with --identity FILE", err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w; run as root or as the user outguard", err)
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w; `outguard bundle list` lists this host's bundles", err)
	}
	return err
}

func (a *app) completeBundle(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	p, err := a.paths()
	if err != nil {
		return nil, cobra.ShellCompDirectiveFilterDirs
	}
	dirs, err := bundle.List(filepath.Join(p.State, evidence.BundlesDir))
	if err != nil || len(dirs) == 0 {
		return nil, cobra.ShellCompDirectiveFilterDirs
	}
	return dirs, cobra.ShellCompDirectiveNoFileComp
}
