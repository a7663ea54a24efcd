package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/outguard/outguard/vmtests/product"
	"github.com/outguard/outguard/vmtests/vm"
)

// libvirtStarted is there when the demo started libvirtd.
const libvirtStarted = dir + "/libvirt-started"

// Clean takes away everything that a demo made, finished or not, and nothing
// else. Only the downloads under /var/cache/outguard stay.
func Clean(ctx context.Context, out io.Writer) error {
	if os.Geteuid() != 0 {
		return errors.New("must run as root")
	}
	_, err := os.Stat(dir)
	ran := !errors.Is(err, fs.ErrNotExist)
	if ran {
		if err := vm.RemoveGuest(ctx, &vm.Options{Dir: dir}, domain); err != nil {
			return fmt.Errorf("remove the guest: %w", err)
		}
	}
	if err := product.Remove(ctx, product.Default()); err != nil {
		return fmt.Errorf("remove the product: %w", err)
	}
	if !ran {
		fmt.Fprintln(out, "demo: nothing left to clean")
		return nil
	}
	if _, err := os.Stat(libvirtStarted); err == nil {
		if err := vm.StopLibvirt(ctx, ""); err != nil {
			return fmt.Errorf("stop libvirtd: %w", err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	fmt.Fprintln(out, "demo: cleaned; the downloads stay in "+cache)
	return nil
}
