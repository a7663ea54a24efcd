package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/age"

	"github.com/outguard/outguard/host/bundle"
	"github.com/outguard/outguard/host/respond"
	"github.com/outguard/outguard/plugins/engine"
)

// The forms that captures are kept in.
const (
	formDirectory = "directory"
	formArchive   = "archive"
)

func (b *Bundles) check() (string, error) {
	for i, r := range b.Recipients {
		if _, err := age.ParseRecipients(strings.NewReader(r)); err != nil {
			return fmt.Sprintf("$.bundles.recipients[%d]", i), fmt.Errorf("%w: a recipient is age1..., as age-keygen prints it", err)
		}
	}
	const alone = "a directory cannot be encrypted: say form: archive, or name no recipients"
	switch {
	case b.Form != formDirectory && b.Form != formArchive:
		return "$.bundles.form", fmt.Errorf("%q is none of %s, %s", b.Form, formDirectory, formArchive)
	case b.RecipientsFile != "" && !filepath.IsAbs(b.RecipientsFile):
		return "$.bundles.recipients_file", fmt.Errorf("%q is not an absolute path", b.RecipientsFile)
	case b.Form == formDirectory && len(b.Recipients) > 0:
		return "$.bundles.recipients", errors.New(alone)
	case b.Form == formDirectory && b.RecipientsFile != "":
		return "$.bundles.recipients_file", errors.New(alone)
	}
	return "", nil
}

// recipients are those of the configuration and of its file. They are read once,
// when a monitor starts: at an incident it is too late for a mistake.
func (b *Bundles) recipients() ([]age.Recipient, error) {
	var all []age.Recipient
	if len(b.Recipients) > 0 {
		named, err := age.ParseRecipients(strings.NewReader(strings.Join(b.Recipients, "\n")))
		if err != nil {
			return nil, fmt.Errorf("bundles.recipients: %w", err)
		}
		all = named
	}
	if b.RecipientsFile == "" {
		return all, nil
	}
	f, err := os.Open(b.RecipientsFile)
	if err != nil {
		return nil, fmt.Errorf("bundles.recipients_file: %w", err)
	}
	defer f.Close()
	more, err := age.ParseRecipients(f)
	if err != nil {
		return nil, fmt.Errorf("bundles.recipients_file %s: %w: it has one age1... a line", b.RecipientsFile, err)
	}
	return append(all, more...), nil
}

// formed says whether a bundle has the form that the configuration asks for.
func (c *capturer) formed(path string) bool {
	return c.m.cfg.Bundles.Form != formArchive || bundle.IsArchive(path)
}

// inForm gives a bundle the form that the configuration asks for, and returns its
// path. Where that cannot be it stays a directory, which is worth more than none,
// and that is a finding. Where the monitor stops it is the next one's to do: that
// alone is an error.
func (c *capturer) inForm(ctx context.Context, o respond.Order, dir string) (string, error) {
	if c.formed(dir) {
		return dir, nil
	}
	path, err := c.archive(ctx, o, dir)
	switch {
	case err != nil && path == dir && errors.Is(ctx.Err(), context.Canceled):
		return "", err
	case err != nil && path == dir:
		c.m.log.Error("a capture was not packed", "order", o.ID, "dir", dir, "error", err)
		c.m.judge.found(notPacked(o, dir, len(c.m.recipients) > 0, err))
	case err != nil:
		c.m.log.Warn("a capture was packed, and its directory is left; the next start removes it", "order", o.ID, "dir", dir, "error", err)
	}
	return path, nil
}

func (c *capturer) archive(ctx context.Context, o respond.Order, dir string) (string, error) {
	done, err := c.m.shelf.beside(o.ID, dir)
	if err != nil {
		return dir, err
	}
	defer done()
	return bundle.Archive(ctx, dir, c.m.store.Key(), &bundle.PackOptions{Recipients: c.m.recipients, Progress: func(part string, done, total int64) {
		c.tell(o.VM, "archive "+part, uint64(done), uint64(total))
	}})
}

// notPacked is worse where the archive was to be encrypted: what it holds is a
// tenant's.
func notPacked(o respond.Order, dir string, encrypted bool, err error) engine.Finding {
	name := filepath.Base(dir)
	f := engine.Finding{
		VM: o.VM, Rule: "capture/not-packed", Severity: engine.Low,
		Reason: fmt.Sprintf("Capture %s stays a directory: it could not be made an archive.", name),
		Detail: map[string]string{"capture": name, "error": err.Error(), "of_finding": o.Finding},
	}
	if encrypted {
		f.Severity = engine.Medium
		f.Reason = fmt.Sprintf("Capture %s stays a directory, which is not encrypted: it could not be made an archive. outguard bundle pack does it by hand.", name)
	}
	return f
}
