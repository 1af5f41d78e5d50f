// Package require stands in for testify's.
package require

import (
	"time"

	"github.com/stretchr/testify/assert"
)

type TestingT interface{ FailNow() }

func NoError(t TestingT, err error)                                                             {}
func Eventually(t TestingT, condition func() bool, waitFor, tick time.Duration)                 {}
func EventuallyWithT(t TestingT, condition func(*assert.CollectT), waitFor, tick time.Duration) {}
