package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/bundle"
)

func (a *app) bundlePackCmd() *cobra.Command {
	var output, recipientsFile string
	var recipients []string
	cmd := a.command(&cobra.Command{
		Use:   "pack DIR",
		Short: "Make one file of a bundle, to be carried off, encrypted to whom you name",
		Long: `Write a bundle as one file: a tar, compressed by zstd, and with --recipient or
--recipients-file encrypted by age, so that only those can read it: it holds a
tenant's memory. Every byte is held against the manifest on the way. outguard
bundle verify takes the file as it is, and outguard bundle extract makes the
directory of it again; so does tar, of one that is not encrypted.`,
		Example: `  outguard bundle pack 20260102T030405Z-web-02K --recipient age1...
  outguard bundle pack 20260102T030405Z-web-02K -o - | ssh lab 'cat >web.tar.zst'`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeBundle,
	}, func(cmd *cobra.Command, args []string) error {
		dir, err := a.bundleDir(args[0])
		if err != nil {
			return err
		}
		if bundle.IsArchive(dir) {
			return fmt.Errorf("%s is one file already: copy it, or extract it and pack that for others", dir)
		}
		to, err := recipientsOf(recipients, recipientsFile)
		if err != nil {
			return err
		}
		if output == "" {
			output = filepath.Base(dir) + bundle.ArchiveSuffix
			if len(to) > 0 {
				output += bundle.EncryptedSuffix
			}
		}
		return readable(a.pack(cmd.Context(), dir, output, to))
	})
	f := cmd.Flags()
	f.StringVarP(&output, "output", "o", "", "write to this `file`, - for standard output (default: the bundle's name with .tar.zst, or .tar.zst.age, here)")
	f.StringArrayVarP(&recipients, "recipient", "r", nil, "encrypt to this `recipient` (age1...), as often as there are some")
	f.StringVarP(&recipientsFile, "recipients-file", "R", "", "encrypt to the recipients in this `file`, one a line")
	return cmd
}

func recipientsOf(named []string, file string) ([]age.Recipient, error) {
	to, err := parseRecipients(strings.Join(named, "\n"), "--recipient")
	if err != nil || file == "" {
		return to, err
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	more, err := parseRecipients(string(b), file)
	if err == nil && len(more) == 0 {
		err = fmt.Errorf("%s: no recipient is in it", file)
	}
	return append(to, more...), err
}

// parseRecipients reads recipients, one a line; from names where they are from.
func parseRecipients(text, from string) ([]age.Recipient, error) {
	if text == "" {
		return nil, nil
	}
	to, err := age.ParseRecipients(strings.NewReader(text))
	if err != nil {
		return nil, usageError{fmt.Errorf("%s: %w: a recipient is age1..., as age-keygen prints it", from, err)}
	}
	return to, nil
}

// pack writes the file under a temporary name first, readable by its owner alone.
func (a *app) pack(ctx context.Context, dir, output string, to []age.Recipient) error {
	opts := &bundle.PackOptions{Recipients: to}
	if output == "-" {
		if err := bundle.Pack(ctx, dir, a.out, opts); err != nil {
			return err
		}
		return a.out.Flush()
	}
	if _, err := os.Lstat(output); err == nil {
		return fmt.Errorf("%s is there already: remove it, or name another with --output", output)
	}
	f, err := os.CreateTemp(filepath.Dir(output), ".outguard-pack-*")
	if err != nil {
		return err
	}
	bar := a.progress()
	opts.Progress = bar.bytes
	err = bundle.Pack(ctx, dir, f, opts)
	bar.end()
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Link(f.Name(), output) // never over another file
	}
	if err = errors.Join(err, os.Remove(f.Name())); err != nil {
		return err
	}
	return a.packed(output, len(to))
}

func (a *app) packed(output string, recipients int) error {
	fi, err := os.Stat(output)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"file": output, "bytes": fi.Size(), "recipients": recipients})
	}
	a.printf("%s: %s\n", quote(output), size(uint64(fi.Size())))
	if recipients == 0 {
		_, _ = fmt.Fprintln(a.err, "it is not encrypted, and holds the guest's memory: --recipient names who can read it")
	}
	return nil
}

func (a *app) bundleExtractCmd() *cobra.Command {
	var key, into, identity string
	cmd := a.command(&cobra.Command{
		Use:   "extract FILE",
		Short: "Verify a bundle in one file, and make its directory of it",
		Long: `Make a directory of a bundle in one file, as outguard bundle pack wrote it. It is
verified as it is read, by the key of the host that signed it, and nothing is
written of one that this key did not sign: a directory is there whole, or not at
all. No monitor needs to run. What is not as it was written ends with exit code 3.`,
		Example: `  outguard bundle extract web.tar.zst.age --identity key.txt --key host.pub --into /srv/cases`,
		Args:    cobra.ExactArgs(1), ValidArgsFunction: completeArchive,
	}, func(cmd *cobra.Command, args []string) error {
		v, err := a.verifier(key)
		if err != nil {
			return err
		}
		ids, err := identities(identity)
		if err != nil {
			return err
		}
		bar := a.progress()
		_, r, err := bundle.Extract(cmd.Context(), args[0], into, v, &bundle.ArchiveOptions{Identities: ids, Progress: bar.bytes})
		bar.end()
		if err == nil && !a.json {
			a.printf("extracted to %s\n", quote(r.Dir))
		}
		return a.verified(&r, err)
	})
	keyFlag(cmd, &key)
	identityFlag(cmd, &identity)
	cmd.Flags().StringVar(&into, "into", ".", "make it in this `directory`")
	return cmd
}

func identityFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVarP(to, "identity", "i", "", "`file` with the age identities that open an encrypted one")
}

func identities(file string) ([]age.Identity, error) {
	if file == "" {
		return nil, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ids, err := age.ParseIdentities(io.LimitReader(f, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("%s: %w: it holds AGE-SECRET-KEY-1... lines, as age-keygen writes them", file, err)
	}
	return ids, nil
}

// bytes shows how much of a part is done.
func (p *progress) bytes(part string, done, total int64) {
	p.show(part, uint64(max(done, 0)), uint64(max(total, 0)))
}

// verified prints a report and makes of err what the command ends with.
func (a *app) verified(r *bundle.Report, err error) error {
	if r.Manifest != nil || len(r.Problems) > 0 || err == nil {
		if printed := a.printBundleReport(r, err); printed != nil {
			return printed
		}
	}
	if errors.Is(err, bundle.ErrChanged) {
		return fmt.Errorf("%w: %w", errVerify, err)
	}
	return readable(err)
}

func completeArchive(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return []cobra.Completion{"zst", "age"}, cobra.ShellCompDirectiveFilterFileExt
}
