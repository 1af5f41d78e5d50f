package web

import (
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/query-service/internal/peer"
)

// replacing reports whether the form asks for another replacement than the one that its payloads were shown with.
func replacing(c *gin.Context) bool {
	return c.PostForm("find") != c.PostForm("applied_find") || c.PostForm("replace") != c.PostForm("applied_replace")
}

// editedPayloads are the payloads of the form by position, where it has one for each.
func editedPayloads(c *gin.Context, positions []string) map[string]string {
	payloads, edited := c.PostFormArray("payload"), map[string]string{}
	if len(payloads) == len(positions) {
		for i, at := range positions {
			edited[at] = strings.ReplaceAll(payloads[i], "\r\n", "\n") // a form sends line ends as CRLF
		}
	}
	return edited
}

// lettersAgain shows what was refused on the page that the form was on: that of one letter, a second step, or the list.
func (p *Pages) lettersAgain(c *gin.Context, refused *peer.Refusal) {
	if at := c.PostForm("position"); c.PostForm("single") != "" {
		p.showLetter(c, refused.Status, at, deadLetterView{Payload: c.PostForm("payload"), Note: c.PostForm("note"), Refused: refused})
		return
	}
	_, reviewed := c.GetPostForm("applied_find")
	_, sure := c.GetPostForm("sure")
	if !reviewed && !sure || c.PostForm("position") == "" || c.PostForm("all") != "" {
		p.choiceAgain(c, refused)
		return
	}
	chosen, ok := p.chosen(c)
	if !ok {
		return
	}
	if chosen.Refused = refused; sure {
		p.showDiscard(c, refused.Status, discardView{choice: chosen})
		return
	}
	p.showReview(c, refused.Status, reviewView{choice: chosen, Find: c.PostForm("find"), Replace: c.PostForm("replace")}, editedPayloads(c, chosen.Positions))
}

// choiceAgain shows the list, with what was searched for, ticked and typed in it.
func (p *Pages) choiceAgain(c *gin.Context, refused *peer.Refusal) {
	p.showLetters(c, refused.Status, deadLettersView{Refused: refused, Picked: c.PostFormArray("position"), All: c.PostForm("all") != "", Note: c.PostForm("note")})
}
