package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/plugins/tsem"
	"github.com/outguard/outguard/plugins/tsem/quixote"
)

// A model file that was exported ends with a signed note:
//
//	…
//	end
//	outguard-model-signature 1
//	sha256 HEX
//
//	— NAME SIGNATURE
//
// HEX is of what stands before it. Source: golang.org/x/mod/sumdb/note.
const signatureMagic = "outguard-model-signature 1\nsha256 "

func signModel(file []byte, key note.Signer) ([]byte, error) {
	signed, err := note.Sign(&note.Note{Text: fmt.Sprintf("%s%x\n", signatureMagic, sha256.Sum256(file))}, key)
	if err != nil {
		return nil, fmt.Errorf("sign model: %w", err)
	}
	return append(file, signed...), nil
}

// verifyModel holds what stands behind a model file against it.
func verifyModel(file, signature []byte, v note.Verifier) error {
	n, err := note.Open(signature, evidence.VerifierList(v))
	if err != nil {
		return fmt.Errorf("signature: %w", err)
	}
	if n.Text != fmt.Sprintf("%s%x\n", signatureMagic, sha256.Sum256(file)) {
		return errors.New("signature: of another file")
	}
	return nil
}

// exportModel fetches a domain's model, as a file.
func (a *app) exportModel(ctx context.Context, vm, engine, workload string) ([]byte, error) {
	client, err := a.client()
	if err != nil {
		return nil, err
	}
	s, err := client.ExportModel(ctx, &apipb.ExportModelRequest{Vm: vm, Engine: engine, Workload: workload})
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Close() }()
	var file []byte
	for s.Receive() {
		file = append(file, s.Msg().Part...)
	}
	return file, s.Err()
}

// trust says by what a model file is believed.
type trust struct {
	key      string // file
	unsigned bool   // not at all
}

func (t *trust) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&t.key, "key", "", "public key `file` that signed it: a host's, or for a file of Quixote's an RSA key as PEM (default: this host's)")
	cmd.Flags().BoolVar(&t.unsigned, "unsigned", false, "believe the file as it is, signed or not")
	cmd.MarkFlagsMutuallyExclusive("key", "unsigned")
}

// readModel reads a model file, Outguard's own or Quixote's.
func (a *app) readModel(name string, t *trust) (*tsem.Model, error) {
	file, err := readBounded(name, tsem.MaxModelFile)
	if err != nil {
		return nil, err
	}
	read := a.quixoteModel
	if bytes.HasPrefix(file, []byte("outguard-model ")) {
		read = a.ownModel
	}
	m, err := read(file, t)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return m, nil
}

func readBounded(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s: more than %d bytes", name, limit)
	}
	return b, err
}

func (a *app) ownModel(file []byte, t *trust) (*tsem.Model, error) {
	m, rest, err := tsem.ParseModel(file, 0)
	switch {
	case err != nil:
		return nil, failedVerify{err}
	case t.unsigned:
		return m, nil
	}
	if len(rest) == 0 {
		return nil, failedVerify{errors.New("the model is not signed; --unsigned takes it as it is")}
	}
	v, err := a.verifier(t.key)
	if err != nil {
		return nil, err
	}
	if err := verifyModel(file[:len(file)-len(rest)], rest, v); err != nil {
		return nil, failedVerify{fmt.Errorf("%w; --key names the key of the host that signed", err)}
	}
	return m, nil
}

func (a *app) quixoteModel(file []byte, t *trust) (*tsem.Model, error) {
	if t.key == "" && !t.unsigned {
		return nil, failedVerify{errors.New("the key inside a model of Quixote's proves nothing about who signed; --key pins one, --unsigned takes it as it is")}
	}
	key, err := readKey(t.key)
	if err != nil {
		return nil, err
	}
	l, err := quixote.LoadModel(bytes.NewReader(file), &quixote.LoadOptions{Key: key})
	if err != nil {
		return nil, failedVerify{err}
	}
	return l.Model, nil
}

// isFile reports whether a model is named as a file, rather than by its domain.
func isFile(name string) bool {
	if strings.ContainsRune(name, filepath.Separator) {
		return true
	}
	_, err := os.Stat(name)
	return err == nil
}

// modelOf is the model of a domain, or of a file, which is believed as it is:
// it is only looked at.
func (a *app) modelOf(ctx context.Context, name, engine, workload string) (*tsem.Model, error) {
	if isFile(name) {
		return a.readModel(name, &trust{unsigned: true})
	}
	file, err := a.exportModel(ctx, name, engine, workload)
	if err != nil {
		return nil, err
	}
	m, _, err := tsem.ParseModel(file, 0)
	if err != nil {
		return nil, fmt.Errorf("model of %s: %w", name, err)
	}
	return m, nil
}

func (a *app) modelExportCmd() *cobra.Command {
	var engine, workload, out, format, key string
	var unsigned bool
	cmd := a.command(&cobra.Command{
		Use:   "export DOMAIN",
		Short: "Write a domain's model to a file",
		Long: `Write a domain's model as a text file, signed with this host's key, from which
outguard model import makes a model again: of the same domain or of others that
do the same work. With --format quixote it is a file that Quixote's agents load,
with the points that are no violations; the mapping has to be quixote.`,
		Example: `  outguard model export web -o web.model
  outguard model import web2 web.model`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeVM,
	}, func(cmd *cobra.Command, args []string) error {
		file, err := a.exportModel(cmd.Context(), args[0], engine, workload)
		if err != nil {
			return err
		}
		switch format {
		case "outguard":
			if !unsigned {
				file, err = a.signed(file, key)
			}
		case "quixote":
			file, err = toQuixote(file)
		default:
			return usageError{fmt.Errorf("--format %q: outguard or quixote", format)}
		}
		if err != nil {
			return err
		}
		return a.writeFile(out, file)
	})
	engineFlag(cmd, &engine)
	a.workloadFlag(cmd, &workload)
	f := cmd.Flags()
	f.StringVarP(&out, "output", "o", "-", "write to this `file`, which must not exist; - is standard output")
	f.StringVar(&format, "format", "outguard", "in this `format`: outguard or quixote")
	f.StringVar(&key, "sign-key", "", "sign with this private key `file` (default: host.key in the configuration's state_dir)")
	f.BoolVar(&unsigned, "unsigned", false, "do not sign it")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]cobra.Completion{"outguard", "quixote"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a *app) signed(file []byte, keyFile string) ([]byte, error) {
	if keyFile == "" {
		p, err := a.paths()
		if err != nil {
			return nil, err
		}
		keyFile = filepath.Join(p.State, evidence.KeyFile)
	}
	key, err := evidence.LoadKey(keyFile)
	if err != nil {
		return nil, fmt.Errorf("%w; run as root, or leave it unsigned with --unsigned", err)
	}
	return signModel(file, key)
}

func toQuixote(file []byte) ([]byte, error) {
	m, _, err := tsem.ParseModel(file, 0)
	if err != nil {
		return nil, err
	}
	if m.Mapping() != tsem.Quixote {
		return nil, fmt.Errorf("the model's mapping is %s: a file of Quixote's always means quixote", m.Mapping())
	}
	var b bytes.Buffer
	err = quixote.WriteModel(&b, m, nil)
	return b.Bytes(), err
}

// writeFile writes what there was not, or standard output.
func (a *app) writeFile(name string, b []byte) error {
	if name == "-" {
		_, err := a.out.Write(b)
		return err
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

func (a *app) modelImportCmd() *cobra.Command {
	var engine, workload string
	var t trust
	cmd := a.command(&cobra.Command{
		Use:   "import DOMAIN FILE",
		Short: "Make the model of a file a domain's own",
		Long: `Put a model file in the place of a domain's model: one that outguard model export
wrote, or one of Quixote's. Its signature is verified: Outguard's own with this
host's public key or that given with --key, Quixote's with the RSA key given. A
sealed model judges from the next event on.`,
		Args: cobra.ExactArgs(2), ValidArgsFunction: a.completeVMThenFile,
	}, func(cmd *cobra.Command, args []string) error {
		model, err := a.readModel(args[1], &t)
		if err != nil {
			return err
		}
		m, err := a.importModel(cmd.Context(), args[0], engine, workload, model.AppendText(nil))
		if err != nil {
			return err
		}
		a.print(m, func() { a.describeModel(m) })
		return nil
	})
	engineFlag(cmd, &engine)
	a.workloadFlag(cmd, &workload)
	t.flags(cmd)
	return cmd
}

func (a *app) importModel(ctx context.Context, vm, engine, workload string, file []byte) (*apipb.Model, error) {
	client, err := a.client()
	if err != nil {
		return nil, err
	}
	s, err := client.ImportModel(ctx)
	if err != nil {
		return nil, err
	}
	const part = 32 << 10
	for first := true; first || len(file) > 0; first = false {
		r := &apipb.ImportModelRequest{Part: file[:min(len(file), part)]}
		if first {
			r.Vm, r.Engine, r.Workload = vm, engine, workload
		}
		if err := s.Send(r); err != nil && !errors.Is(err, io.EOF) { // what the monitor said comes below
			return nil, err
		}
		file = file[len(r.Part):]
	}
	m, err := s.CloseAndReceive()
	return m.GetModel(), err
}

// completeVMThenFile completes a domain, then a file.
func (a *app) completeVMThenFile(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return a.completeVM(cmd, args, word)
	}
	return nil, cobra.ShellCompDirectiveDefault
}
