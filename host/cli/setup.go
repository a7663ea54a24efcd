package cli

import "github.com/spf13/cobra"

// setupCmds are the verbs that need no monitor and change this host.
func (a *app) setupCmds() []*cobra.Command { return nil }
