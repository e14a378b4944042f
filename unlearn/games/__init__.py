"""The two games: players whose best response is known in closed form and can be differentiated."""
