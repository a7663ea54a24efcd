package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/outguard/outguard/host/api/apipb"
)

func (a *app) statusCmd() *cobra.Command {
	return a.command(&cobra.Command{
		Use:   "status",
		Short: "Say how the monitor itself is",
		Args:  cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string) error {
		client, err := a.client()
		if err != nil {
			return err
		}
		s, err := client.Status(cmd.Context(), &apipb.StatusRequest{})
		if err != nil {
			return err
		}
		a.print(s, func() { a.describeStatus(s) })
		return nil
	})
}

func (a *app) describeStatus(s *apipb.StatusResponse) {
	a.fact("version", s.Version)
	a.fact("started", clock(s.Started))
	a.fact("pid", fmt.Sprint(s.Pid))
	a.fact("state", s.StateDir)
	a.fact("host key", s.HostKey)
	libvirt := s.Libvirt
	if s.LibvirtError != "" {
		libvirt += ": " + s.LibvirtError
	}
	a.fact("libvirt", libvirt)
	a.fact("listens on", strings.Join(s.Listeners, ", "))
	a.fact("sessions", fmt.Sprint(s.Sessions))
	playbook := s.Playbook
	if s.InForce != nil {
		playbook = playbookLine(s.InForce)
	}
	a.fact("playbook", playbook)
	if len(s.Engines) == 0 {
		return
	}
	a.printf("\n")
	t := a.table("ENGINE", "VERSION", "STATE", "RESTARTS", "JUDGED", "BEHIND", "ERROR")
	for _, e := range s.Engines {
		t.row(e.Name, e.Version, e.State, fmt.Sprint(e.Restarts), fmt.Sprint(e.Judged), fmt.Sprint(e.Behind), e.Error)
	}
	t.flush()
}
