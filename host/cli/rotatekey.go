package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/evidence"
)

func (a *app) rotateKeyCmd() *cobra.Command {
	var reason string
	cmd := a.command(&cobra.Command{
		Use:   "rotate-key",
		Short: "Give this host a new key, which the old one signs",
		Long: `Make a new host key. The old key signs that the new one follows it, and the new one
that it does; host.keys beside the public key says so to everybody. Who has any of
the host's public keys verifies all that was signed before and after, with
host.keys, which need not come from a trusted place: bundles and exports have it
with them. What the old key signs from now on is not believed.

A monitor that runs does it, and goes on: the next head of each record is the new
key's. Where none runs it is done here. Either way it is on the host's own record,
at the next start at the latest. It is for root and the monitor's own user.

A key that somebody else may have can name a successor of its own: then give those
who verify the new host.pub yourself.`,
		Args: cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string) error { return a.rotateKey(cmd.Context(), reason) })
	reasonFlag(cmd, &reason)
	return cmd
}

func (a *app) rotateKey(ctx context.Context, reason string) error {
	p, err := a.paths()
	if err != nil {
		return err
	}
	r, err := evidence.RotateKey(p.State, time.Now())
	running := errors.Is(err, evidence.ErrInUse)
	if running {
		r, err = a.askForRotation(ctx, reason)
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w; outguardd makes the first key when it first starts", err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w; run as root or as the user outguard", err)
	case err != nil:
		return err
	}
	if a.json {
		return a.printJSON(r)
	}
	a.printf("rotation %d at %s\nold key  %s\nnew key  %s\nwhat follows from which: %s\n",
		r.Number, r.Time.Format(time.RFC3339), quote(r.Old), quote(r.New), filepath.Join(p.State, evidence.KeysFile))
	if !running {
		a.printf("No monitor runs here: systemctl start outguardd\n")
	}
	return nil
}

// askForRotation has the monitor do it that has the record open.
func (a *app) askForRotation(ctx context.Context, reason string) (evidence.Rotation, error) {
	client, err := a.client()
	if err != nil {
		return evidence.Rotation{}, err
	}
	r, err := client.RotateKey(ctx, &apipb.RotateKeyRequest{Reason: reason})
	if err != nil {
		return evidence.Rotation{}, err
	}
	at, err := api.ParseTime(r.Time)
	if err != nil {
		return evidence.Rotation{}, fmt.Errorf("rotation's time: %w", err)
	}
	return evidence.Rotation{Number: r.Number, Old: r.OldKey, New: r.NewKey, Time: at}, nil
}
