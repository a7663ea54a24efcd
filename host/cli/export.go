package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/plugins/tsem"
	"github.com/outguard/outguard/plugins/tsem/quixote"
	"github.com/outguard/outguard/vsockproto"
)

// exportFlags are those of export.
type exportFlags struct {
	format, output, to, workload string
	follow, only                 bool
}

func (a *app) exportCmd() *cobra.Command {
	var f exportFlags
	cmd := a.command(&cobra.Command{
		Use:   "export DOMAIN",
		Short: "Stream a domain's events as TSEM exports them, for Quixote's tools",
		Long: `Print the events of a domain, one JSON object a line, as TSEM's kernel exports them
to Quixote's agents: those that the tsem engine models, from the first one that is
recorded, and with --follow those that come. With --workload it is those of one
model alone: a container's, by its name in outguard model list, or with an empty
name the domain's own. outguard tsem replay of that gives the measurement and the
state that the engine has of the same model; of a domain without containers that
is everything.

Every line is JSON. Quixote's agents search text: a name with a brace, a backslash
or a control character they misread, or refuse the line. How many names were such
is said at the end; replay those with --dialect json. A byte that is no UTF-8
stands as \udc80 to \udcff.`,
		Example: `  outguard export web >web.jsonl
  outguard export web --follow --to unix:/run/siem.sock`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeVM,
	}, func(cmd *cobra.Command, args []string) error {
		f.only = cmd.Flags().Changed("workload")
		return a.export(cmd.Context(), args[0], &f)
	})
	fl := cmd.Flags()
	fl.StringVar(&f.format, "format", "quixote", "in this `format`: quixote")
	fl.BoolVarP(&f.follow, "follow", "f", false, "go on with what arrives")
	fl.StringVarP(&f.output, "output", "o", "-", "write to this `file`, which must not exist; - is standard output")
	fl.StringVar(&f.to, "to", "", "write to the socket at this `address`: unix:PATH or tcp:HOST:PORT")
	fl.StringVar(&f.workload, "workload", "", "what is of this workload alone, by its `name` in outguard model list; '' is the domain's own (default: everything)")
	_ = cmd.RegisterFlagCompletionFunc("workload", a.completeWorkload)
	cmd.MarkFlagsMutuallyExclusive("output", "to")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]cobra.Completion{"quixote"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a *app) export(ctx context.Context, vm string, f *exportFlags) error {
	if f.format != "quixote" {
		return usageError{fmt.Errorf("--format %q: quixote", f.format)}
	}
	client, err := a.client()
	if err != nil {
		return err
	}
	out, err := a.destination(ctx, f)
	if err != nil {
		return err
	}
	s, err := client.Records(ctx, &apipb.RecordsRequest{Vm: vm, Follow: f.follow})
	if err != nil {
		return errors.Join(err, out.Close())
	}
	defer func() { _ = s.Close() }()
	x := &exporting{out: bufio.NewWriterSize(out, 64<<10), exporter: tsem.NewExporter(), live: f.follow}
	if f.only {
		x.exporter.Only(f.workload)
	}
	err = x.run(s)
	if f.follow && ctx.Err() != nil && (errors.Is(err, context.Canceled) || connect.CodeOf(err) == connect.CodeCanceled) {
		err = nil
	}
	err = errors.Join(err, x.out.Flush(), out.Close())
	a.tellExport(x)
	return err
}

// tellExport says what of an export an agent of Quixote's would not get.
func (a *app) tellExport(x *exporting) {
	if x.bad > 0 {
		_, _ = fmt.Fprintf(a.err, "outguard: %d records could not be decoded and are left out, the first: %v\n", x.bad, x.first)
	}
	if x.odd > 0 {
		_, _ = fmt.Fprintf(a.err, "outguard: %d of %d events have names that Quixote's agents misread; replay them with --dialect json\n", x.odd, x.n)
	}
}

// notClosed is standard output.
type notClosed struct{ io.Writer }

func (notClosed) Close() error { return nil }

func (a *app) destination(ctx context.Context, f *exportFlags) (io.WriteCloser, error) {
	switch network, address, _ := strings.Cut(f.to, ":"); {
	case f.to == "" && f.output == "-":
		return notClosed{flushed{a.out}}, nil
	case f.to == "":
		return os.OpenFile(f.output, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	case network == "unix" || network == "tcp":
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	return nil, usageError{fmt.Errorf("--to %q: unix:PATH or tcp:HOST:PORT", f.to)}
}

// exporting is one export under way.
type exporting struct {
	out      *bufio.Writer
	exporter *tsem.Exporter
	live     bool // what there is goes out at once
	line     []byte
	n, odd   uint64
	bad      uint64
	first    error
}

func (x *exporting) run(s *connect.ServerStreamForClient[apipb.RecordsResponse]) error {
	for s.Receive() {
		b, err := batchOf(s.Msg())
		if err != nil {
			return err
		}
		if err := x.exporter.Batch(b, x.undecodable, x.event); err != nil {
			return err
		}
		if x.live {
			if err := x.out.Flush(); err != nil {
				return err
			}
		}
	}
	return s.Err()
}

func (x *exporting) undecodable(err error) {
	if x.bad++; x.first == nil {
		x.first = err
	}
}

func (x *exporting) event(e *tsem.Exported) error {
	var plain bool
	if x.line, plain = quixote.AppendEvent(x.line[:0], e); !plain {
		x.odd++
	}
	x.n++
	_, err := x.out.Write(x.line)
	return err
}

// batchOf is a batch as the engines have it: without the agent's own canaries,
// which no model knows.
func batchOf(r *apipb.RecordsResponse) (*engine.Batch, error) {
	session, err := uuid.FromBytes(r.Session)
	if err != nil {
		return nil, fmt.Errorf("session: %w", err)
	}
	received, err := api.ParseTime(r.Received)
	if err != nil {
		return nil, fmt.Errorf("batch %d: %w", r.Index, err)
	}
	records, canaries := vsockproto.DropCanaries(r.Records)
	return &engine.Batch{Session: session, Index: r.Index, Received: received, Count: int(r.Count) - canaries, Records: records}, nil
}
