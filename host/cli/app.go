package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/api/apipb/apipbconnect"
	"github.com/outguard/outguard/host/decide"
)

// app is one run of the program.
type app struct {
	out *bufio.Writer // flushed at the end, and after each line of what follows
	err io.Writer

	json           bool
	config, socket string
}

const defaultConfig = "/etc/outguard/outguard.yaml"

// paths is what the command line needs of the monitor's configuration; the
// monitor validates the rest.
type paths struct {
	State    string `yaml:"state_dir"`
	Run      string `yaml:"run_dir"`
	Libvirt  string `yaml:"libvirt"`
	Playbook string `yaml:"playbook"`
	Listen   struct {
		HybridDir string `yaml:"hybrid_dir"`
	} `yaml:"listen"`
}

// paths reads the configuration; without a file, unless one was named, the
// defaults stand.
func (a *app) paths() (*paths, error) {
	file := a.config
	if file == "" {
		file = defaultConfig
	}
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) && a.config == "" {
		text, err = nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	p := new(paths)
	err = decide.Plain(text)
	if err == nil {
		err = yaml.Unmarshal(text, p)
	}
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w; `outguardd --check` validates it", file, err)
	}
	p.setDefaults()
	return p, nil
}

func (p *paths) setDefaults() {
	set(&p.State, "/var/lib/outguard")
	set(&p.Run, "/run/outguard")
	set(&p.Libvirt, "/run/libvirt/libvirt-sock")
	set(&p.Listen.HybridDir, filepath.Join(p.Run, "vsock"))
}

func set(s *string, v string) {
	if *s == "" {
		*s = v
	}
}

// client finds the monitor's socket; it does not yet connect.
func (a *app) client() (apipbconnect.OutguardClient, error) {
	if a.socket == "" {
		p, err := a.paths()
		if err != nil {
			return nil, err
		}
		a.socket = filepath.Join(p.Run, "api.sock")
	}
	return api.NewClient(a.socket), nil
}

// explain says an error and what to do next.
func (a *app) explain(err error) string {
	var coded *connect.Error
	switch {
	case errors.Is(err, context.Canceled):
		return "interrupted"
	case !errors.As(err, &coded):
		return err.Error()
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Sprintf("no monitor answers at %s; start it with `systemctl start outguardd`, or run `outguardd` where systemd does not", a.socket)
	case errors.Is(err, syscall.EACCES):
		return fmt.Sprintf("this user may not open %s; run as root or as a member of the group outguard", a.socket)
	case coded.Code() == connect.CodeUnavailable:
		return fmt.Sprintf("the monitor at %s: %s", a.socket, coded.Message())
	}
	return coded.Message()
}

func contextTimeout(cmd *cobra.Command, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(cmd.Context(), d)
}
