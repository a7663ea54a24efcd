package main

import (
	"testing"

	"github.com/outguard/outguard/plugins/engine/enginetest"
)

func TestContract(t *testing.T) {
	enginetest.Run(t, "github.com/outguard/outguard/plugins/cmd/outguard-engine-tsem")
}
